// Pairwise attention of the SAN shapes: its output.
#include "pairwise.cuh"

namespace san {

template <int R>
SAN_INLINE const float *initial(const PairwiseArgs &args, const Pair &pair) {
  return static_cast<const float *>(args.table)
      + table_row(args, pair.centre, pair.neighbour, pair.slot) * R;
}

// Writes t of the pairs start .. start + live to the panel; h where no product lies between.
template <class T, int R, int DELTA>
SAN_INLINE void fill_relations(const PairwiseArgs &args, int64 image, const Memory<R> &memory,
                               int start, int live) {
  constexpr int kPitch = Shape<R>::kPitch;
  if constexpr (DELTA == kDot) {  // behind its row
    for (int row = threadIdx.x; row < live; row += kThreads) {
      const Pair pair = memory.pairs[start + row];
      memory.panel[row * kPitch + R] =
          relu(dot_of<T, R>(args, image, pair.centre, pair.neighbour));
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < live * (R / 4); i += kThreads) {
    const int row = i / (R / 4), r = i % (R / 4) * 4;
    const Pair pair = memory.pairs[start + row];
    Quad<float> relation;
    if constexpr (DELTA == kDot) {
      const float t = memory.panel[row * kPitch + R];
      const Quad<float> weight = load4(static_cast<const float *>(args.w1) + r);
      relation = load4(initial<R>(args, pair) + r);
#pragma unroll
      for (int c = 0; c < 4; c++) relation.at[c] += weight.at[c] * t;
    } else {
      relation = compared<T, DELTA>(args, image, pair.centre, pair.neighbour, r);
      if constexpr (DELTA == kConcatenation) {
        const Quad<float> first = load4(initial<R>(args, pair) + r);
#pragma unroll
        for (int c = 0; c < 4; c++) relation.at[c] += first.at[c];
      }
    }
    store4(memory.panel + row * kPitch + r, relu(relation));
  }
}

// From t to h in the panel, of the rows that this thread has at `offsets`.
template <int R>
SAN_INLINE void hidden_layer(const PairwiseArgs &args, const Memory<R> &memory, const float *w1t,
                             const int (&offsets)[Shape<R>::kRows], int start, int live) {
  constexpr int kAcross = Shape<R>::kAcross, kVectors = Shape<R>::kVectors;
  constexpr int ROWS = Shape<R>::kRows;
  const int across = threadIdx.x % kAcross, down = threadIdx.x / kAcross;
  float hidden[ROWS][4 * kVectors];
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    const float *row = initial<R>(
        args, memory.pairs[start + min(down + i * Shape<R>::kDown, live - 1)]);
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
      const Quad<float> first = load4(row + (v * kAcross + across) * 4);
#pragma unroll
      for (int c = 0; c < 4; c++) hidden[i][4 * v + c] = first.at[c];
    }
  }
  product<R, ROWS, 4, kVectors>(memory.panel, offsets, w1t + across * 4, R, kAcross * 4, hidden);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < ROWS; i++)
#pragma unroll
    for (int c = 0; c < 4 * kVectors; c++) hidden[i][c] = relu(hidden[i][c]);
  store_panel<R>(memory.panel, offsets, hidden);
  __syncthreads();
}

// Keeps the signs of the hidden units in the panel, one bit each.
template <int R> SAN_INLINE void keep_signs(const PairwiseArgs &args, int64 image,
                                            const Memory<R> &memory, int start, int live) {
  constexpr int kWords = Shape<R>::kWords;
  for (int i = threadIdx.x; i < live * kWords; i += kThreads) {
    const int row = i / kWords, word = i % kWords;
    const Pair pair = memory.pairs[start + row];
    unsigned bits = 0;
#pragma unroll
    for (int quad = 0; quad < 4; quad++) {
      const Quad<float> h = load4(memory.panel + row * Shape<R>::kPitch + word * 16 + quad * 4);
#pragma unroll
      for (int c = 0; c < 4; c++) bits |= static_cast<unsigned>(h.at[c] > 0.0f) << (quad * 4 + c);
    }
    const int64 pixel = image * args.height * args.width + pair.centre;
    args.signs[(pixel * args.slots + pair.slot) * kWords + word] =
        static_cast<unsigned short>(bits);
  }
}

// The logits of the pairs start .. start + live, at their places among the scores.
template <class T, int R, int DELTA>
SAN_INLINE void score(const PairwiseArgs &args, int64 image, const Memory<R> &memory,
                      const float *w1t, const float *w2t, int start, int live) {
  constexpr int kAcross = Shape<R>::kAcross, kWidth = 2 * Shape<R>::kVectors;
  constexpr int ROWS = Shape<R>::kRows;
  const int across = threadIdx.x % kAcross, down = threadIdx.x / kAcross;
  fill_relations<T, R, DELTA>(args, image, memory, start, live);
  int offsets[ROWS];
  panel_rows<R>(offsets);
  __syncthreads();
  if constexpr (kMultiplied<DELTA>) hidden_layer(args, memory, w1t, offsets, start, live);
  if (args.signs) keep_signs(args, image, memory, start, live);
  float logits[ROWS][kWidth] = {};
  product<R, ROWS, kWidth, 1>(memory.panel, offsets, w2t + across * kWidth, R / 2, 0, logits);
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    if (down + i * Shape<R>::kDown >= live) continue;
    float *place = memory.scores + across * kWidth
        + memory.pairs[start + down + i * Shape<R>::kDown].place * Shape<R>::kGroups;
#pragma unroll
    for (int c = 0; c < kWidth; c++) place[c] = logits[i][c];
  }
  __syncthreads();
}

// Turns logits into weights, multiplicities included, and keeps them where asked.
template <int R> SAN_INLINE void normalise(const PairwiseArgs &args, int64 image,
                                           const Memory<R> &memory) {
  constexpr int kGroups = Shape<R>::kGroups;
  for (int i = threadIdx.x; i < args.strips * kStrip * kGroups; i += kThreads) {
    const int p = i / kGroups, g = i % kGroups, begin = memory.begin[p], end = memory.begin[p + 1];
    if (begin == end) continue;
    float highest = memory.scores[memory.pairs[begin].place * kGroups + g], total = 0;
    for (int e = begin; e < end; e++)
      highest = larger(highest, memory.scores[memory.pairs[e].place * kGroups + g]);
    for (int e = begin; e < end; e++) {
      float &score = memory.scores[memory.pairs[e].place * kGroups + g];
      score = memory.pairs[e].times * expf(score - highest);
      total += score;
    }
    const float factor = 1.0f / total;
    for (int e = begin; e < end; e++)
      memory.scores[memory.pairs[e].place * kGroups + g] *= factor;
  }
  __syncthreads();
  if (!args.alpha) return;
  const int row = args.slots * kGroups;
  for (int i = threadIdx.x; i < memory.begin[args.strips * kStrip] * kGroups; i += kThreads) {
    const Pair pair = memory.pairs[i / kGroups];
    const int64 pixel = image * args.height * args.width + pair.centre;
    static_cast<float *>(args.alpha)[pixel * row + pair.slot * kGroups + i % kGroups] =
        memory.scores[pair.place * kGroups + i % kGroups];
  }
}

// Sums a strip's neighbours; its pixels share the values that both see.
template <class T, int R> SAN_INLINE void attend(const PairwiseArgs &args, int64 image,
                                                 const Memory<R> &memory) {
  constexpr int kGroups = Shape<R>::kGroups, kQuads = Shape<R>::kChannels / 4;
  const int width = static_cast<int>(args.width), footprint = args.footprint;
  for (int i = threadIdx.x; i < args.strips * kQuads; i += kThreads) {
    const int strip = i / kQuads, channel = i % kQuads * 4, group = channel % kGroups;
    if (memory.centres[strip * kStrip] < 0) continue;
    const Reach window(args, memory.centres[strip * kStrip]);
    Quad<float> sums[kStrip] = {};
    const int right = min(window.x + footprint / 2 + kStrip, width);
    for (int row = 0; row < window.rows; row++) {
      const int slots = (window.top + row - window.y + footprint / 2) * footprint;
      for (int x = window.left; x < right; x++) {
        const Quad<float> v = load4(row_of<T>(args.value, image, (window.top + row) * width + x)
                                + channel);
#pragma unroll
        for (int p = 0; p < kStrip; p++) {
          const int column = x - window.x - p + footprint / 2;
          if (column < 0 || column >= footprint) continue;
          const int place = (strip * kStrip + p) * args.slots + slots + column;
          add_scaled(sums[p], load4(memory.scores + place * kGroups + group), v);
        }
      }
    }
#pragma unroll
    for (int p = 0; p < kStrip; p++) {
      const int centre = memory.centres[strip * kStrip + p];
      if (centre < 0) continue;
      if (args.scale) sums[p] = relu(scaled(sums[p], args.scale, args.shift, channel));
      store4(row_of<T>(args.out, image, centre) + channel, sums[p]);
    }
  }
}

template <class T, int R, int DELTA>
__global__ void __launch_bounds__(kThreads, 2) pairwise_forward(const PairwiseArgs args) {
  SAN_DYNAMIC_SHARED(bytes);
  const Memory<R> memory(bytes, args.strips * kStrip, args.slots);
  const Tile tile(args);
  const float *w1t = stage<Shape<R>::kStaged && kMultiplied<DELTA>>(args.w1t, memory.first_weight,
                                                                    R * R);
  const float *w2t = stage<Shape<R>::kStaged>(args.w2t, memory.second_weight, R * R / 2);
  for (int strip = 0; strip < tile.strips; strip += args.strips) {
    find_centres(args, tile, strip, memory);
    __syncthreads();
    list_pairs(args, memory, true);
    const int count = memory.begin[args.strips * kStrip];
    for (int start = 0; start < count; start += Shape<R>::kPairs)
      score<T, R, DELTA>(args, tile.image, memory, w1t, w2t, start,
                         min(count - start, Shape<R>::kPairs));
    normalise(args, tile.image, memory);
    attend<T, R>(args, tile.image, memory);
    __syncthreads();
  }
}

}  // namespace san
