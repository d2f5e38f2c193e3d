// Pairwise attention of the SAN shapes: hidden = relation R, groups = R / 2, channels = 4 R.
// A block takes a tile of pixels, some at a time. Their pairs (pixel, slot) form one dense list,
// so the small matrix products have full register tiles whatever the footprint and the border.
// Maps need their pixels in order, equally far apart and aligned, and the channels of a pixel
// together: dense channels-last maps, or runs of channels of such.
#include "common.cuh"

namespace san {

constexpr int kThreads = 256;
constexpr int kStrip = 2;    // pixels of one row that share the values they read
constexpr int kParts = 2;    // threads among which the slots of a pixel are dealt

template <int R> struct Shape {
  static constexpr int kGroups = R / 2, kChannels = 4 * R;
  static constexpr int kVectors = R == 128 ? 2 : 1;
  static constexpr int kAcross = R / (4 * kVectors);   // threads along a row of the hidden layer
  static constexpr int kDown = kThreads / kAcross;
  static constexpr int kRows = 4;                      // pairs of one thread
  static constexpr int kPairs = kDown * kRows;
  static constexpr int kPitch = R + 4;                 // spreads rows over the banks
  static constexpr int kWords = R / 16;                // of sign bits
  static constexpr bool kStaged = R <= 64;             // weights in shared memory
};

struct alignas(16) Pair {
  int neighbour, centre;   // pixels of the map; neighbour -1: outside
  int place;               // pixel of the strips * slots + slot: where its scores are
  short slot, times;       // times: multiplicity
};

// Shared memory of a block; `pixels` are those of the strips taken together.
template <int R> struct Memory {
  float *scores;           // [pixels][slots][groups]
  float *panel;            // [kPairs][kPitch]; parts of the value's gradient
  float *sums;             // [pixels][R]
  float *first_weight, *second_weight;
  Pair *pairs;             // [pixels * slots]
  int *centres;            // [pixels]: pixel of the map, -1: none
  int *begin;              // [pixels + 1]: each pixel's pairs in the list

  SAN_INLINE Memory(char *memory, int pixels, int slots) {
    pairs = reinterpret_cast<Pair *>(memory);
    scores = reinterpret_cast<float *>(pairs + pixels * slots);
    panel = scores + pixels * slots * Shape<R>::kGroups;
    sums = panel + max(Shape<R>::kPairs * Shape<R>::kPitch, kParts * pixels * 4 * R);
    first_weight = sums + pixels * R;
    second_weight = first_weight + (Shape<R>::kStaged ? R * R : 0);
    centres = reinterpret_cast<int *>(second_weight + (Shape<R>::kStaged ? R * R / 2 : 0));
    begin = centres + pixels;
  }
};

struct Tile {
  int64 image;
  int y, x, strips_across, strips;

  SAN_INLINE explicit Tile(const PairwiseArgs &args) {
    const int height = static_cast<int>(args.height), width = static_cast<int>(args.width);
    const int tiles_across = (width + args.tile_width - 1) / args.tile_width;
    const int tiles = tiles_across * ((height + args.tile_height - 1) / args.tile_height);
    const int tile = static_cast<int>(blockIdx.x % tiles);
    image = blockIdx.x / tiles;
    y = tile / tiles_across * args.tile_height;
    x = tile % tiles_across * args.tile_width;
    strips_across = (min(args.tile_width, width - x) + kStrip - 1) / kStrip;
    strips = strips_across * min(args.tile_height, height - y);
  }
};

// Copies a weight matrix to shared memory; returns where to read it.
template <bool STAGED> SAN_INLINE const float *stage(const void *weight, float *copy, int count) {
  const float *source = static_cast<const float *>(weight);
  if constexpr (!STAGED) {
    return source;
  } else {
    for (int i = threadIdx.x * 4; i < count; i += kThreads * 4)
      store4(copy + i, load4(source + i));
    return copy;
  }
}

// Finds the centres of the strips from `strip` on.
template <int R> SAN_INLINE void find_centres(const PairwiseArgs &args, const Tile &tile, int strip,
                                              const Memory<R> &memory) {
  for (int p = threadIdx.x; p < args.strips * kStrip; p += kThreads) {
    const int mine = strip + p / kStrip;
    const int y = tile.y + mine / tile.strips_across;
    const int x = tile.x + mine % tile.strips_across * kStrip + p % kStrip;
    memory.centres[p] = mine < tile.strips && x < args.width
        ? static_cast<int>(y * args.width) + x : -1;
  }
}

// The window of a centre, clipped to the map.
struct Reach {
  int y, x, top, left, rows, columns;

  SAN_INLINE Reach(const PairwiseArgs &args, int centre) {
    const int height = static_cast<int>(args.height), width = static_cast<int>(args.width);
    const int reach = args.footprint / 2;
    y = centre / width;
    x = centre % width;
    top = max(y - reach, 0);
    left = max(x - reach, 0);
    rows = min(y + reach, height - 1) - top + 1;
    columns = min(x + reach, width - 1) - left + 1;
  }
  SAN_INLINE int pairs(const PairwiseArgs &args, bool outside) const {
    const bool clipped = rows * columns < args.footprint * args.footprint;
    return rows * columns + (outside && args.padding == kZeros && clipped);
  }
};

// Lists the pairs of all centres, pixel by pixel; ends with the list readable by all threads.
template <int R> SAN_INLINE void list_pairs(const PairwiseArgs &args, const Memory<R> &memory,
                                            bool outside) {
  const int pixels = args.strips * kStrip, footprint = args.footprint, reach = footprint / 2;
  const int height = static_cast<int>(args.height), width = static_cast<int>(args.width);
  for (int p = threadIdx.x; p <= pixels; p += kThreads) {
    int before = 0;
    for (int other = 0; other < p; other++)
      if (memory.centres[other] >= 0)
        before += Reach(args, memory.centres[other]).pairs(args, outside);
    memory.begin[p] = before;
  }
  __syncthreads();
  const int squares = footprint * footprint;
  for (int i = threadIdx.x; i < pixels * (squares + 1); i += kThreads) {
    const int p = i / (squares + 1), slot = i % (squares + 1);
    if (memory.centres[p] < 0) continue;
    const Reach window(args, memory.centres[p]);
    if (slot == squares) {
      const int inside = window.rows * window.columns;
      if (window.pairs(args, outside) > inside)
        memory.pairs[memory.begin[p] + inside] = {
            -1, memory.centres[p], p * args.slots + slot, static_cast<short>(slot),
            static_cast<short>(squares - inside)};
      continue;
    }
    const int y = window.y + slot / footprint - reach, x = window.x + slot % footprint - reach;
    const int row = y - window.top, column = x - window.left;
    if (row < 0 || row >= window.rows || column < 0 || column >= window.columns) continue;
    const int times = args.padding == kZeros ? 1
        : multiplicity(window.y, y, height, reach) * multiplicity(window.x, x, width, reach);
    memory.pairs[memory.begin[p] + row * window.columns + column] = {
        y * width + x, memory.centres[p], p * args.slots + slot, static_cast<short>(slot),
        static_cast<short>(times)};
  }
  __syncthreads();
}

// Channels of one pixel; an image has less than 2^31 elements.
template <class T> SAN_INLINE T *row_of(const Map &map, int64 image, int pixel) {
  return static_cast<T *>(map.data) + image * map.image + pixel * static_cast<int>(map.column);
}

SAN_INLINE const float *table_row(const PairwiseArgs &args, int centre, int slot, int hidden) {
  const int64 pixel = args.table_per_pixel ? centre : 0;
  const int rows = args.footprint * args.footprint + 1;
  return static_cast<const float *>(args.table) + (pixel * rows + slot) * hidden;
}

// Writes relu(query - key) of the pairs start .. start + live to the panel.
template <class T, int R> SAN_INLINE void fill_relations(const PairwiseArgs &args, int64 image,
                                                         const Memory<R> &memory, int start,
                                                         int live) {
  for (int i = threadIdx.x; i < live * (R / 4); i += kThreads) {
    const int row = i / (R / 4), r = i % (R / 4) * 4;
    const Pair pair = memory.pairs[start + row];
    Quad<float> relation = load4(row_of<T>(args.query, image, pair.centre) + r);
    Quad<float> key = {{0, 0, 0, 0}};
    if (pair.neighbour >= 0) key = load4(row_of<T>(args.key, image, pair.neighbour) + r);
#pragma unroll
    for (int c = 0; c < 4; c++) relation.at[c] = relu(relation.at[c] - key.at[c]);
    store4(memory.panel + row * Shape<R>::kPitch + r, relation);
  }
}

// Offsets of this thread's rows in the panel.
template <int R, int ROWS> SAN_INLINE void panel_rows(int (&offsets)[ROWS]) {
#pragma unroll
  for (int i = 0; i < ROWS; i++)
    offsets[i] = (static_cast<int>(threadIdx.x) / Shape<R>::kAcross + i * Shape<R>::kDown)
        * Shape<R>::kPitch;
}

// Stores register tiles of R columns to the panel.
template <int R, int ROWS>
SAN_INLINE void store_panel(float *panel, const int (&offsets)[ROWS],
                            const float (&tile)[ROWS][4 * Shape<R>::kVectors]) {
  const int column = threadIdx.x % Shape<R>::kAcross * 4;
#pragma unroll
  for (int i = 0; i < ROWS; i++)
#pragma unroll
    for (int v = 0; v < Shape<R>::kVectors; v++)
      store4(panel + offsets[i] + column + v * Shape<R>::kAcross * 4,
             Quad<float>{{tile[i][4 * v], tile[i][4 * v + 1], tile[i][4 * v + 2],
                          tile[i][4 * v + 3]}});
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
template <class T, int R>
SAN_INLINE void score(const PairwiseArgs &args, int64 image, const Memory<R> &memory,
                      const float *w1t, const float *w2t, int start, int live) {
  constexpr int kAcross = Shape<R>::kAcross, kVectors = Shape<R>::kVectors, kWidth = 2 * kVectors;
  constexpr int ROWS = Shape<R>::kRows;
  const int across = threadIdx.x % kAcross, down = threadIdx.x / kAcross;
  fill_relations<T, R>(args, image, memory, start, live);
  int offsets[ROWS];
  panel_rows<R>(offsets);
  float hidden[ROWS][4 * kVectors];
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    const Pair pair = memory.pairs[start + min(down + i * Shape<R>::kDown, live - 1)];
    const float *row = table_row(args, pair.centre, pair.slot, R);
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
      const Quad<float> initial = load4(row + (v * kAcross + across) * 4);
#pragma unroll
      for (int c = 0; c < 4; c++) hidden[i][4 * v + c] = initial.at[c];
    }
  }
  __syncthreads();
  product<R, ROWS, 4, kVectors>(memory.panel, offsets, w1t + across * 4, R, kAcross * 4, hidden);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < ROWS; i++)
#pragma unroll
    for (int c = 0; c < 4 * kVectors; c++) hidden[i][c] = relu(hidden[i][c]);
  store_panel<R>(memory.panel, offsets, hidden);
  __syncthreads();
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
      if (args.scale) {
        const Quad<float> scale = load4(static_cast<const float *>(args.scale) + channel);
        const Quad<float> shift = load4(static_cast<const float *>(args.shift) + channel);
#pragma unroll
        for (int c = 0; c < 4; c++)
          sums[p].at[c] = relu(sums[p].at[c] * scale.at[c] + shift.at[c]);
      }
      store4(row_of<T>(args.out, image, centre) + channel, sums[p]);
    }
  }
}

template <class T, int R>
__global__ void __launch_bounds__(kThreads, 2) pairwise_forward(const PairwiseArgs args) {
  SAN_DYNAMIC_SHARED(bytes);
  const Memory<R> memory(bytes, args.strips * kStrip, args.slots);
  const Tile tile(args);
  const float *w1t = stage<Shape<R>::kStaged>(args.w1t, memory.first_weight, R * R);
  const float *w2t = stage<Shape<R>::kStaged>(args.w2t, memory.second_weight, R * R / 2);
  for (int strip = 0; strip < tile.strips; strip += args.strips) {
    find_centres(args, tile, strip, memory);
    __syncthreads();
    list_pairs(args, memory, true);
    const int count = memory.begin[args.strips * kStrip];
    for (int start = 0; start < count; start += Shape<R>::kPairs)
      score<T, R>(args, tile.image, memory, w1t, w2t, start,
                  min(count - start, Shape<R>::kPairs));
    normalise(args, tile.image, memory);
    attend<T, R>(args, tile.image, memory);
    __syncthreads();
  }
}

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

// From gradients of logits to those of relu(query - key), summed into each centre.
template <class T, int R, bool KEY>
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
#pragma unroll
  for (int i = 0; i < ROWS; i++)
#pragma unroll
    for (int c = 0; c < 4 * S::kVectors; c++) grads[i][c] = 0;
  product<R, ROWS, 4, S::kVectors>(memory.panel, offsets, w1 + across * 4, R, S::kAcross * 4,
                                   grads);
  __syncthreads();
  store_panel<R>(memory.panel, offsets, grads);
#pragma unroll 1
  for (int i = down; i < live; i += S::kDown) {
    const Pair pair = memory.pairs[start + i];
#pragma unroll
    for (int v = 0; v < S::kVectors; v++) {
      const int column = (v * S::kAcross + across) * 4;
      const Quad<float> query = load4(
          row_of<T>(args.query, image, KEY ? pair.neighbour : pair.centre) + column);
      Quad<float> key = {};
      if (KEY || pair.neighbour >= 0)
        key = load4(row_of<T>(args.key, image, KEY ? pair.centre : pair.neighbour) + column);
      Quad<float> grad = load4(memory.panel + i * S::kPitch + column);
#pragma unroll
      for (int c = 0; c < 4; c++)
        if (!(query.at[c] - key.at[c] > 0.0f)) grad.at[c] = 0;
      store4(memory.panel + i * S::kPitch + column, grad);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < args.strips * kStrip * R; i += kThreads) {
    const int p = i / R, r = i % R;
    float sum = memory.sums[i];
    const int end = min(memory.begin[p + 1], start + live);
    for (int e = max(memory.begin[p], start); e < end; e++)
      sum += memory.panel[(e - start) * S::kPitch + r];
    memory.sums[i] = sum;
  }
  if (!KEY && args.scatter)
    for (int i = threadIdx.x; i < live * R; i += kThreads) {
      const int neighbour = memory.pairs[start + i / R].neighbour;
      if (neighbour < 0) continue;
      const int64 pixel = image * args.height * args.width + neighbour;
      atomicAdd(static_cast<float *>(args.scattered) + pixel * R + i % R,
                -memory.panel[i / R * S::kPitch + i % R]);
    }
  __syncthreads();
}

// KEY: the gradients of key and value, else that of the query, which must come first.
template <class T, int R, bool KEY>
__global__ void __launch_bounds__(kThreads, 2) pairwise_backward(const PairwiseArgs args) {
  SAN_DYNAMIC_SHARED(bytes);
  const Memory<R> memory(bytes, args.strips * kStrip, args.slots);
  const Tile tile(args);
  const float *w1 = stage<Shape<R>::kStaged>(args.w1, memory.first_weight, R * R);
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
      relation_grads<T, R, KEY>(args, tile.image, memory, w1, w2, start,
                                min(count - start, Shape<R>::kPairs));
    for (int i = threadIdx.x; i < args.strips * kStrip * (R / 4); i += kThreads) {
      const int centre = memory.centres[i / (R / 4)], r = i % (R / 4) * 4;
      if (centre < 0) continue;
      Quad<float> sum = load4(memory.sums + i * 4);
#pragma unroll
      for (int c = 0; c < 4; c++)
        if (KEY) sum.at[c] = -sum.at[c];
      store4(row_of<T>(KEY ? args.grad_key : args.grad_query, tile.image, centre) + r, sum);
    }
    __syncthreads();
  }
}

}  // namespace san
