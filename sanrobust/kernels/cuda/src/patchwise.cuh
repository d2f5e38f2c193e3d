// Patchwise attention of the SAN shapes: hidden = groups = R / 2, channels = 4 R. Each kernel is a
// matrix product whose rows are pixels in their order over the batch; neighbours are gathered
// while a panel is loaded, slot by slot, so nothing of K2 times the map's size exists.
// Maps are laid out as pairwise.cuh asks for.
#pragma once
#include "common.cuh"

namespace san {

constexpr int kThreads = 256;

// A product of COLUMNS columns: threads along a row, rows of one thread and of the block.
template <int COLUMNS, int ROWS> struct Product {
  static constexpr int kColumns = COLUMNS, kAcross = COLUMNS / 4, kDown = kThreads / kAcross;
  static constexpr int kRows = ROWS, kPixels = kDown * ROWS;

  // This thread's first column of four, its rows, and the rank of a row's pixel.
  static SAN_INLINE int column() { return threadIdx.x % kAcross * 4; }
  static SAN_INLINE int row(int i) { return static_cast<int>(threadIdx.x) / kAcross + i * kDown; }
  static SAN_INLINE int64 rank(int64 row) { return static_cast<int64>(blockIdx.x) * kPixels + row; }
};

template <int R> struct Shape {
  static constexpr int kGroups = R / 2, kEach = 8;
  typedef Product<R / 2, (R == 16 ? 2 : 4)> Hidden;   // the hidden layer
  typedef Product<R / 2, (R == 16 ? 1 : 2)> Weights;  // one slot's weights, with 8 values each
  typedef Product<R, 4> Relation;                     // gradients of query and key
};

struct Place {
  int64 image;
  int y, x;                // y < 0: past the last pixel
};

template <class P> SAN_INLINE void find_places(const PatchwiseArgs &args, Place *places) {
  const int64 pixels = args.images * args.height * args.width;
  for (int p = threadIdx.x; p < P::kPixels; p += kThreads) {
    const int64 rank = P::rank(p);
    const Pixel pixel = pixel_of(rank, args.height, args.width);
    places[p] = {pixel.image, rank < pixels ? pixel.y : -1, pixel.x};
  }
}

// The channels of a place in a map.
template <class T>
SAN_INLINE T *row_at(const PatchwiseArgs &args, const Map &map, const Place &place) {
  return row_of<T>(map, place.image, place.y * static_cast<int>(args.width) + place.x);
}

// The pixel of the map in a slot of a place, -1: outside or no place.
SAN_INLINE int neighbour_of(const PatchwiseArgs &args, const Place &place, int slot) {
  const int height = static_cast<int>(args.height), width = static_cast<int>(args.width);
  const int footprint = args.footprint;
  int y = place.y + slot / footprint - footprint / 2;
  int x = place.x + slot % footprint - footprint / 2;
  if (place.y < 0) return -1;
  if (args.padding == kReflect) {
    y = reflect(y, height);
    x = reflect(x, width);
  }
  return y >= 0 && y < height && x >= 0 && x < width ? y * width + x : -1;
}

// Sets each row of a tile.
template <int ROWS> SAN_INLINE void set_rows(float (&tile)[ROWS][4], const Quad<float> &row) {
#pragma unroll
  for (int i = 0; i < ROWS; i++)
#pragma unroll
    for (int c = 0; c < 4; c++) tile[i][c] = row.at[c];
}

// Shared memory of a block, and its product P: a panel of INNER columns times a matrix. CENTRES:
// with room for `found` and `centres`.
template <class P, int INNER, bool CENTRES> struct Memory {
  static constexpr int kPitch = INNER + 4;   // spreads rows over the banks
  Place *places;
  int *found;              // whether any pixel of the block has a centre this way; two, in turns
  int *centres;            // those centres, -1: none
  float *panel, *weight;

  SAN_INLINE explicit Memory(char *bytes) {
    places = reinterpret_cast<Place *>(bytes);
    found = reinterpret_cast<int *>(places + P::kPixels);
    centres = found + (CENTRES ? 4 : 0);
    panel = reinterpret_cast<float *>(centres + (CENTRES ? P::kPixels : 0));
    weight = panel + P::kPixels * kPitch;
  }

  // Copies the matrix from a source whose rows are `pitch` apart.
  SAN_INLINE void stage(const float *source, int64 pitch) const {
    for (int i = threadIdx.x; i < INNER * P::kAcross; i += kThreads) {
      const int row = i / P::kAcross, column = i % P::kAcross * 4;
      store4(weight + row * P::kColumns + column, load4(source + row * pitch + column));
    }
  }

  // Adds the product to this thread's tile.
  SAN_INLINE void multiply(float (&sums)[P::kRows][4]) const {
    int offsets[P::kRows];
#pragma unroll
    for (int i = 0; i < P::kRows; i++) offsets[i] = P::row(i) * kPitch;
    product<INNER, P::kRows, 4, 1>(panel, offsets, weight + P::column(), P::kColumns, 0, sums);
  }

  // The same by a sum for each slot first: one sum over all would round three times as much.
  SAN_INLINE void multiply_apart(float (&sums)[P::kRows][4]) const {
    float part[P::kRows][4] = {};
    multiply(part);
#pragma unroll
    for (int i = 0; i < P::kRows; i++)
#pragma unroll
      for (int c = 0; c < 4; c++) sums[i][c] += part[i][c];
  }
};

// That of the kernels that compute a slot's weights or their gradients.
template <int R>
using WeightsMemory = Memory<typename Shape<R>::Weights, Shape<R>::kGroups, true>;

// The weights of one slot from the panel and the staged matrix.
template <int R>
SAN_INLINE void slot_weights(const PatchwiseArgs &args, int slot, const WeightsMemory<R> &memory,
                             float (&weights)[Shape<R>::Weights::kRows][4]) {
  set_rows(weights, load4(static_cast<const float *>(args.b2) + slot * Shape<R>::kGroups
                          + Shape<R>::Weights::column()));
  memory.multiply(weights);
}

// Adds weights times the channels g, g + groups... of one pixel of a map.
template <class T, int R>
SAN_INLINE void add_weighted(const T *row, const float (&weights)[4],
                             Quad<float> (&sums)[Shape<R>::kEach]) {
#pragma unroll
  for (int m = 0; m < Shape<R>::kEach; m++)
    add_scaled(sums[m], quad_of(weights), load4(row + m * Shape<R>::kGroups));
}

}  // namespace san
