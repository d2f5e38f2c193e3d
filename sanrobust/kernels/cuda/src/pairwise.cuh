// Pairwise attention of the SAN shapes: hidden = relation R, groups = R / 2, channels = 4 R.
// A block takes a tile of pixels, some at a time. Their pairs (pixel, slot) form one dense list,
// so the small matrix products have full register tiles whatever the footprint and the border.
// Maps need their pixels in order, equally far apart and aligned, and the channels of a pixel
// together: dense channels-last maps, or runs of channels of such.
#pragma once
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
  static constexpr int kPitch = R + 4;                 // spreads rows over the banks, with room
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

// Whether a product lies between a pair's comparison and the hidden layer.
template <int DELTA> constexpr bool kMultiplied = DELTA == kSubtraction || DELTA == kHadamard;

// Four channels of a pair's comparison, before a ReLU; a neighbour outside has key 0.
template <class T, int DELTA>
SAN_INLINE Quad<float> compared(const PairwiseArgs &args, int64 image, int centre, int neighbour,
                                int r) {
  Quad<float> query = load4(row_of<T>(args.query, image, centre) + r), key = {{0, 0, 0, 0}};
  if (neighbour >= 0) key = load4(row_of<T>(args.key, image, neighbour) + r);
  if constexpr (DELTA == kHadamard) {
    Quad<float> product = load4(static_cast<const float *>(args.offset) + r);
    add_scaled(product, query, key);
    return product;
  } else {
#pragma unroll
    for (int c = 0; c < 4; c++) query.at[c] -= key.at[c];
    return query;
  }
}

template <class T, int R>
SAN_INLINE float dot_of(const PairwiseArgs &args, int64 image, int centre, int neighbour) {
  const T *query = row_of<T>(args.query, image, centre);
  float sum = *static_cast<const float *>(args.offset);
  if (neighbour < 0) return sum;
  const T *key = row_of<T>(args.key, image, neighbour);
#pragma unroll 2
  for (int r = 0; r < R; r += 4) {
    const Quad<float> one = load4(query + r), other = load4(key + r);
#pragma unroll
    for (int c = 0; c < 4; c++) sum += one.at[c] * other.at[c];
  }
  return sum;
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
      store4(panel + offsets[i] + column + v * Shape<R>::kAcross * 4, quad_of(tile[i] + 4 * v));
}

}  // namespace san
