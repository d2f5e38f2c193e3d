// Pairwise attention of the SAN shapes: its gradients.
#include "pairwise.cuh"

namespace san {

// Of one centre and two groups: the gradient of the weight of every other pair.
template <class T, int R> SAN_INLINE void weight_grads(const PairwiseArgs &args, int64 image,
                                                       const Memory<R> &memory) {
  constexpr int kGroups = Shape<R>::kGroups, kEach = Shape<R>::kChannels / kGroups;
  constexpr int duos = kGroups / 2;
  for (int i = threadIdx.x; i < args.strips * kStrip * duos * kParts; i += kThreads) {
    const int g = i % duos * 2, part = i / duos % kParts, p = i / duos / kParts;
    if (memory.centres[p] < 0) continue;
    const T *grad = row_of<T>(args.grad, image, memory.centres[p]) + g;
    Duo<float> grads[kEach];
#pragma unroll
    for (int m = 0; m < kEach; m++) grads[m] = load<2>(grad + m * kGroups);
    for (int e = memory.begin[p] + part; e < memory.begin[p + 1]; e += kParts) {
      const Pair pair = memory.pairs[e];
      Duo<float> sum = {};
      if (pair.neighbour >= 0) {
        const T *value = row_of<T>(args.value, image, pair.neighbour) + g;
#pragma unroll
        for (int m = 0; m < kEach; m++) add_scaled(sum, grads[m], load<2>(value + m * kGroups));
      }
      store(memory.scores + pair.place * kGroups + g, sum);
    }
  }
  __syncthreads();
}

// Turns gradients of weights into gradients of logits; keeps the dot products for the key's pass.
template <int R> SAN_INLINE void logit_grads(const PairwiseArgs &args, int64 image,
                                             const Memory<R> &memory) {
  constexpr int kGroups = Shape<R>::kGroups;
  for (int i = threadIdx.x; i < args.strips * kStrip * kGroups; i += kThreads) {
    const int p = i / kGroups, g = i % kGroups;
    if (memory.centres[p] < 0) continue;
    const int64 pixel = image * args.height * args.width + memory.centres[p];
    const float *alpha = static_cast<const float *>(args.alpha)
        + (pixel - p) * args.slots * kGroups + g;
    float dot = 0;
    for (int e = memory.begin[p]; e < memory.begin[p + 1]; e++) {
      const int place = memory.pairs[e].place * kGroups;
      dot += alpha[place] * memory.scores[place + g];
    }
    for (int e = memory.begin[p]; e < memory.begin[p + 1]; e++) {
      const int place = memory.pairs[e].place * kGroups;
      memory.scores[place + g] = alpha[place] * (memory.scores[place + g] - dot);
    }
    static_cast<float *>(args.dots)[pixel * kGroups + g] = dot;
  }
  __syncthreads();
}

// The key's pass: centres are neighbours of the pixels in their windows. Gradients of logits by
// the dot products of the query's pass, and the gradient of the value beside them.
template <class T, int R> SAN_INLINE void key_grads(const PairwiseArgs &args, int64 image,
                                                    const Memory<R> &memory) {
  constexpr int kGroups = Shape<R>::kGroups, kChannels = Shape<R>::kChannels;
  constexpr int kEach = kChannels / kGroups;
  constexpr int duos = kGroups / 2;
  const int pixels = args.strips * kStrip, squares = args.footprint * args.footprint;
  for (int i = threadIdx.x; i < pixels * duos * kParts; i += kThreads) {
    const int g = i % duos * 2, part = i / duos % kParts, p = i / duos / kParts;
    if (memory.centres[p] < 0) continue;
    const T *value = row_of<T>(args.value, image, memory.centres[p]) + g;
    Duo<float> values[kEach], sums[kEach] = {};
#pragma unroll
    for (int m = 0; m < kEach; m++) values[m] = load<2>(value + m * kGroups);
    for (int e = memory.begin[p] + part; e < memory.begin[p + 1]; e += kParts) {
      const Pair pair = memory.pairs[e];
      const int64 pixel = image * args.height * args.width + pair.neighbour;
      const int slot = squares - 1 - pair.slot;
      const Duo<float> alpha = load<2>(static_cast<const float *>(args.alpha)
                                      + (pixel * args.slots + slot) * kGroups + g);
      const Duo<float> dot = load<2>(static_cast<const float *>(args.dots) + pixel * kGroups + g);
      const T *grad = row_of<T>(args.grad, image, pair.neighbour) + g;
      Duo<float> logit = {};
#pragma unroll
      for (int m = 0; m < kEach; m++) {
        const Duo<float> v = load<2>(grad + m * kGroups);
        add_scaled(logit, values[m], v);
        add_scaled(sums[m], alpha, v);
      }
#pragma unroll
      for (int c = 0; c < 2; c++) logit.at[c] = alpha.at[c] * (logit.at[c] - dot.at[c]);
      store(memory.scores + pair.place * kGroups + g, logit);
    }
#pragma unroll
    for (int m = 0; m < kEach; m++)
      store(memory.panel + (p * kParts + part) * kChannels + m * kGroups + g, sums[m]);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < pixels * (kChannels / 4); i += kThreads) {
    const int p = i / (kChannels / 4), channel = i % (kChannels / 4) * 4;
    if (memory.centres[p] < 0) continue;
    const float *parts = memory.panel + p * kParts * kChannels + channel;
    Quad<float> sum = load4(parts);
#pragma unroll
    for (int part = 1; part < kParts; part++)
#pragma unroll
      for (int c = 0; c < 4; c++) sum.at[c] += parts[part * kChannels + c];
    store4(row_of<T>(args.grad_value, image, memory.centres[p]) + channel, sum);
  }
  __syncthreads();
}

// The pixels of a pair: in the key's pass the centre is the one whose key is compared.
template <bool KEY> struct Ends {
  int query, key;

  SAN_INLINE explicit Ends(const Pair &pair)
      : query(KEY ? pair.neighbour : pair.centre), key(KEY ? pair.centre : pair.neighbour) {}
};

// What a centre's channel is multiplied by in a product; a neighbour outside has key 0.
template <class T, bool KEY>
SAN_INLINE Quad<float> factor(const PairwiseArgs &args, int64 image, const Ends<KEY> &ends, int r) {
  if (KEY) return load4(row_of<T>(args.query, image, ends.query) + r);
  if (ends.key < 0) return {{0, 0, 0, 0}};
  return load4(row_of<T>(args.key, image, ends.key) + r);
}

// In the panel: from gradients of h to those of the centre's channels.
template <class T, int R, int DELTA, bool KEY>
SAN_INLINE void channel_grads(const PairwiseArgs &args, int64 image, const Memory<R> &memory,
                              const float *w1, const int (&offsets)[Shape<R>::kRows], int start,
                              int live) {
  typedef Shape<R> S;
  const int across = threadIdx.x % S::kAcross, down = threadIdx.x / S::kAcross;
  float grads[S::kRows][4 * S::kVectors] = {};
  product<R, S::kRows, 4, S::kVectors>(memory.panel, offsets, w1 + across * 4, R, S::kAcross * 4,
                                       grads);
  __syncthreads();
  store_panel<R>(memory.panel, offsets, grads);
#pragma unroll 1
  for (int i = down; i < live; i += S::kDown) {
    const Ends<KEY> ends(memory.pairs[start + i]);
#pragma unroll
    for (int v = 0; v < S::kVectors; v++) {
      const int column = (v * S::kAcross + across) * 4;
      const Quad<float> t = compared<T, DELTA>(args, image, ends.query, ends.key, column);
      Quad<float> grad = load4(memory.panel + i * S::kPitch + column);
      Quad<float> times = {{1, 1, 1, 1}};
      if constexpr (DELTA == kHadamard) times = factor<T>(args, image, ends, column);
#pragma unroll
      for (int c = 0; c < 4; c++) grad.at[c] = t.at[c] > 0.0f ? grad.at[c] * times.at[c] : 0.0f;
      store4(memory.panel + i * S::kPitch + column, grad);
    }
  }
  __syncthreads();
}

// The same where pairs are compared by their dot product, whose gradient goes behind its row.
template <class T, int R, bool KEY>
SAN_INLINE void dot_grads(const PairwiseArgs &args, int64 image, const Memory<R> &memory,
                          int start, int live) {
  constexpr int kPitch = Shape<R>::kPitch;
  const float *w1 = static_cast<const float *>(args.w1);
  for (int row = threadIdx.x; row < live; row += kThreads) {
    const Ends<KEY> ends(memory.pairs[start + row]);
    float *place = memory.panel + row * kPitch, sum = 0;
    if (dot_of<T, R>(args, image, ends.query, ends.key) > 0.0f)
#pragma unroll 4
      for (int unit = 0; unit < R; unit++) sum += w1[unit] * place[unit];
    place[R] = sum;
  }
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < live * (R / 4); i += kThreads) {
    const int row = i / (R / 4), r = i % (R / 4) * 4;
    Quad<float> grad = factor<T>(args, image, Ends<KEY>(memory.pairs[start + row]), r);
#pragma unroll
    for (int c = 0; c < 4; c++) grad.at[c] *= memory.panel[row * kPitch + R];
    store4(memory.panel + row * kPitch + r, grad);
  }
  __syncthreads();
}

// From gradients of logits to those of the centre's channels, summed into each centre.
template <class T, int R, int DELTA, bool KEY>
SAN_INLINE void relation_grads(const PairwiseArgs &args, int64 image, const Memory<R> &memory,
                               const float *w1, const float *w2, int start, int live) {
  typedef Shape<R> S;
  constexpr int ROWS = S::kRows;
  const int across = threadIdx.x % S::kAcross, down = threadIdx.x / S::kAcross;
  const int squares = args.footprint * args.footprint;
  int offsets[ROWS];
  float grads[ROWS][4 * S::kVectors] = {};
#pragma unroll
  for (int i = 0; i < ROWS; i++)
    offsets[i] = memory.pairs[start + min(down + i * S::kDown, live - 1)].place * S::kGroups;
  product<S::kGroups, ROWS, 4, S::kVectors>(memory.scores, offsets, w2 + across * 4, R,
                                            S::kAcross * 4, grads);
  panel_rows<R>(offsets);
  store_panel<R>(memory.panel, offsets, grads);
  // Masked in the panel by the thread that wrote it: not unrolled, this needs few registers.
#pragma unroll 1
  for (int i = down; i < live; i += S::kDown) {
    const Pair pair = memory.pairs[start + i];
    const int64 pixel = image * args.height * args.width
        + (KEY ? pair.neighbour : pair.centre);
    const unsigned short *signs = args.signs
        + (pixel * args.slots + (KEY ? squares - 1 - pair.slot : pair.slot)) * S::kWords;
#pragma unroll
    for (int v = 0; v < S::kVectors; v++) {
      const int column = (v * S::kAcross + across) * 4;
      const unsigned bits = signs[column / 16] >> (column % 16);
      Quad<float> grad = load4(memory.panel + i * S::kPitch + column);
#pragma unroll
      for (int c = 0; c < 4; c++)
        if (!(bits >> c & 1)) grad.at[c] = 0;
      store4(memory.panel + i * S::kPitch + column, grad);
    }
  }
  __syncthreads();
  if constexpr (kMultiplied<DELTA>)
    channel_grads<T, R, DELTA, KEY>(args, image, memory, w1, offsets, start, live);
  if constexpr (DELTA == kDot) dot_grads<T, R, KEY>(args, image, memory, start, live);
  for (int i = threadIdx.x; i < args.strips * kStrip * R; i += kThreads) {
    const int p = i / R, r = i % R;
    float sum = memory.sums[i];
    const int end = min(memory.begin[p + 1], start + live);
    for (int e = max(memory.begin[p], start); e < end; e++)
      sum += memory.panel[(e - start) * S::kPitch + r];
    memory.sums[i] = sum;
  }
  __syncthreads();
}

// KEY: the gradients of key and value, else that of the query, which must come first.
template <class T, int R, int DELTA, bool KEY>
__global__ void __launch_bounds__(kThreads, 2) pairwise_backward(const PairwiseArgs args) {
  SAN_DYNAMIC_SHARED(bytes);
  const Memory<R> memory(bytes, args.strips * kStrip, args.slots);
  const Tile tile(args);
  const float *w1 = stage<Shape<R>::kStaged && kMultiplied<DELTA>>(args.w1, memory.first_weight,
                                                                   R * R);
  const float *w2 = stage<Shape<R>::kStaged>(args.w2, memory.second_weight, R * R / 2);
  for (int strip = 0; strip < tile.strips; strip += args.strips) {
    find_centres(args, tile, strip, memory);
    for (int i = threadIdx.x; i < args.strips * kStrip * R; i += kThreads) memory.sums[i] = 0;
    __syncthreads();
    list_pairs(args, memory, !KEY);
    if (KEY) {
      key_grads<T, R>(args, tile.image, memory);
    } else {
      weight_grads<T, R>(args, tile.image, memory);
      logit_grads(args, tile.image, memory);
    }
    const int count = memory.begin[args.strips * kStrip];
    for (int start = 0; start < count; start += Shape<R>::kPairs)
      relation_grads<T, R, DELTA, KEY>(args, tile.image, memory, w1, w2, start,
                                       min(count - start, Shape<R>::kPairs));
    for (int i = threadIdx.x; i < args.strips * kStrip * (R / 4); i += kThreads) {
      const int centre = memory.centres[i / (R / 4)], r = i % (R / 4) * 4;
      if (centre < 0) continue;
      Quad<float> sum = load4(memory.sums + i * 4);
#pragma unroll
      for (int c = 0; c < 4; c++)
        if (KEY && (DELTA == kSubtraction || DELTA == kConcatenation)) sum.at[c] = -sum.at[c];
      store4(row_of<T>(KEY ? args.grad_key : args.grad_query, tile.image, centre) + r, sum);
    }
    __syncthreads();
  }
}

}  // namespace san
