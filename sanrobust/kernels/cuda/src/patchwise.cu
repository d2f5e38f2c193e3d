// Patchwise attention of the SAN shapes: hidden = groups = R / 2, channels = 4 R. Each kernel is a
// matrix product whose rows are pixels in their order over the batch; neighbours are gathered
// while a panel is loaded, slot by slot, so nothing of K2 times the map's size exists.
// Maps are laid out as pairwise.cuh asks for.
#include "common.cuh"

namespace san {

constexpr int kThreads = 256;

// A product of COLUMNS columns: threads along a row, rows of one thread and of the block.
template <int COLUMNS, int ROWS> struct Product {
  static constexpr int kAcross = COLUMNS / 4, kDown = kThreads / kAcross;
  static constexpr int kRows = ROWS, kPixels = kDown * ROWS;
};

template <int R> struct Shape {
  static constexpr int kGroups = R / 2, kChannels = 4 * R, kEach = 8;
  typedef Product<R / 2, (R == 16 ? 2 : 4)> Hidden;   // the hidden layer
  typedef Product<R / 2, (R == 16 ? 1 : 2)> Weights;  // one slot's weights, with 8 values each
  typedef Product<R, 4> Relation;                     // gradients of query and key
};

struct Place {
  int64 image;
  int y, x;                // y < 0: past the last pixel
};

template <int PIXELS> SAN_INLINE void find_places(const PatchwiseArgs &args, Place *places) {
  const int64 pixels = args.images * args.height * args.width;
  for (int p = threadIdx.x; p < PIXELS; p += kThreads) {
    const int64 rank = static_cast<int64>(blockIdx.x) * PIXELS + p;
    const Pixel pixel = pixel_of(rank, args.height, args.width);
    places[p] = {pixel.image, rank < pixels ? pixel.y : -1, pixel.x};
  }
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

// The pixel in whose slot this place lies, directly or through mirrored borders; -1: none.
SAN_INLINE int centre_of(const PatchwiseArgs &args, const Place &place, int slot, int ways) {
  const int height = static_cast<int>(args.height), width = static_cast<int>(args.width);
  if (place.y < 0) return -1;
  const int y = origin(place.y, slot / args.footprint - args.footprint / 2, height, 1, height,
                       ways & 1);
  const int x = origin(place.x, slot % args.footprint - args.footprint / 2, width, 1, width,
                       ways & 2);
  return y < 0 || x < 0 ? -1 : y * width + x;
}

// Copies `rows` x COLUMNS values, source rows `pitch` apart, to dense shared memory.
template <int COLUMNS> SAN_INLINE void stage(const void *source, int64 pitch, int rows,
                                             float *copy) {
  for (int i = threadIdx.x; i < rows * (COLUMNS / 4); i += kThreads) {
    const int row = i / (COLUMNS / 4), column = i % (COLUMNS / 4) * 4;
    store4(copy + row * COLUMNS + column,
           load4(static_cast<const float *>(source) + row * pitch + column));
  }
}

template <class P, int PITCH> SAN_INLINE void panel_rows(int (&offsets)[P::kRows]) {
#pragma unroll
  for (int i = 0; i < P::kRows; i++)
    offsets[i] = (static_cast<int>(threadIdx.x) / P::kAcross + i * P::kDown) * PITCH;
}

template <class P> SAN_INLINE int row_index(int i) {
  return static_cast<int>(threadIdx.x) / P::kAcross + i * P::kDown;
}

SAN_INLINE Quad<float> quad_of(const float (&v)[4]) { return {{v[0], v[1], v[2], v[3]}}; }

template <int ROWS> SAN_INLINE void add_tile(float (&sums)[ROWS][4], const float (&part)[ROWS][4]) {
#pragma unroll
  for (int i = 0; i < ROWS; i++)
#pragma unroll
    for (int c = 0; c < 4; c++) sums[i][c] += part[i][c];
}

template <class T, int R>
__global__ void __launch_bounds__(kThreads, 2) patchwise_hidden(const PatchwiseArgs args) {
  typedef typename Shape<R>::Hidden P;
  constexpr int kGroups = Shape<R>::kGroups, kPitch = R + 4;
  SAN_DYNAMIC_SHARED(bytes);
  Place *places = reinterpret_cast<Place *>(bytes);
  float *panel = reinterpret_cast<float *>(places + P::kPixels);
  float *weight = panel + P::kPixels * kPitch;
  find_places<P::kPixels>(args, places);
  const int column = threadIdx.x % P::kAcross * 4, squares = args.footprint * args.footprint;
  int offsets[P::kRows];
  panel_rows<P, kPitch>(offsets);
  float sums[P::kRows][4];
  const Quad<float> bias = load4(static_cast<const float *>(args.b1) + column);
#pragma unroll
  for (int i = 0; i < P::kRows; i++)
#pragma unroll
    for (int c = 0; c < 4; c++) sums[i][c] = bias.at[c];
  __syncthreads();
  for (int slot = -1; slot < squares; slot++) {
    stage<kGroups>(static_cast<const float *>(args.w1t) + (1 + slot) * R * kGroups, kGroups, R,
                   weight);
    for (int i = threadIdx.x; i < P::kPixels * (R / 4); i += kThreads) {
      const int row = i / (R / 4), r = i % (R / 4) * 4;
      const Place place = places[row];
      Quad<float> v = {};
      if (slot < 0) {
        if (place.y >= 0)
          v = load4(row_of<T>(args.query, place.image,
                              place.y * static_cast<int>(args.width) + place.x) + r);
      } else {
        const int pixel = neighbour_of(args, place, slot);
        if (pixel >= 0) v = load4(row_of<T>(args.key, place.image, pixel) + r);
        const Quad<float> scale = load4(static_cast<const float *>(args.key_scale) + slot * R + r);
        const Quad<float> shift = load4(static_cast<const float *>(args.key_shift) + slot * R + r);
#pragma unroll
        for (int c = 0; c < 4; c++) v.at[c] = v.at[c] * scale.at[c] + shift.at[c];
      }
#pragma unroll
      for (int c = 0; c < 4; c++) v.at[c] = relu(v.at[c]);
      store4(panel + row * kPitch + r, v);
    }
    __syncthreads();
    // A sum for each slot first: one sum over all would round three times as much.
    float part[P::kRows][4] = {};
    product<R, P::kRows, 4, 1>(panel, offsets, weight + column, kGroups, 0, part);
    add_tile(sums, part);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < P::kRows; i++) {
    if (places[row_index<P>(i)].y < 0) continue;
#pragma unroll
    for (int c = 0; c < 4; c++) sums[i][c] = relu(sums[i][c]);
    const int64 rank = static_cast<int64>(blockIdx.x) * P::kPixels + row_index<P>(i);
    store4(static_cast<float *>(args.h) + rank * kGroups + column, quad_of(sums[i]));
  }
}

// Shared memory of the kernels that compute a slot's weights: their panel holds hidden units.
template <int R> struct WeightsMemory {
  typedef typename Shape<R>::Weights P;
  static constexpr int kPitch = Shape<R>::kGroups + 4;
  Place *places;
  int *found;              // whether any pixel of the block has a centre this way; two, in turns
  int *centres;            // those centres, -1: none
  float *panel, *weight;

  SAN_INLINE explicit WeightsMemory(char *bytes) {
    places = reinterpret_cast<Place *>(bytes);
    found = reinterpret_cast<int *>(places + P::kPixels);
    centres = found + 4;
    panel = reinterpret_cast<float *>(centres + P::kPixels);
    weight = panel + P::kPixels * kPitch;
  }
};

// The weights of one slot from the panel and the staged matrix.
template <int R>
SAN_INLINE void slot_weights(const PatchwiseArgs &args, int slot, const WeightsMemory<R> &memory,
                             float (&weights)[Shape<R>::Weights::kRows][4]) {
  typedef typename Shape<R>::Weights P;
  constexpr int kGroups = Shape<R>::kGroups;
  const int column = threadIdx.x % P::kAcross * 4;
  int offsets[P::kRows];
  panel_rows<P, WeightsMemory<R>::kPitch>(offsets);
  const Quad<float> bias =
      load4(static_cast<const float *>(args.b2) + slot * kGroups + column);
#pragma unroll
  for (int i = 0; i < P::kRows; i++)
#pragma unroll
    for (int c = 0; c < 4; c++) weights[i][c] = bias.at[c];
  product<kGroups, P::kRows, 4, 1>(memory.panel, offsets, memory.weight + column, kGroups, 0,
                                   weights);
}

// Adds weights times the channels g, g + groups... of one pixel of a map.
template <class T, int R>
SAN_INLINE void add_weighted(const T *row, const float (&weights)[4],
                             float (&sums)[Shape<R>::kEach][4]) {
#pragma unroll
  for (int m = 0; m < Shape<R>::kEach; m++) {
    const Quad<float> v = load4(row + m * Shape<R>::kGroups);
#pragma unroll
    for (int c = 0; c < 4; c++) sums[m][c] += weights[c] * v.at[c];
  }
}

template <class T, int R>
__global__ void __launch_bounds__(kThreads, 2) patchwise_attend(const PatchwiseArgs args) {
  typedef typename Shape<R>::Weights P;
  constexpr int kGroups = Shape<R>::kGroups, kEach = Shape<R>::kEach;
  SAN_DYNAMIC_SHARED(bytes);
  const WeightsMemory<R> memory(bytes);
  const int column = threadIdx.x % P::kAcross * 4, squares = args.footprint * args.footprint;
  const int64 first = static_cast<int64>(blockIdx.x) * P::kPixels;
  find_places<P::kPixels>(args, memory.places);
  __syncthreads();
  for (int i = threadIdx.x; i < P::kPixels * (kGroups / 4); i += kThreads) {
    const int row = i / (kGroups / 4), unit = i % (kGroups / 4) * 4;
    Quad<float> h = {};
    if (memory.places[row].y >= 0)
      h = load4(static_cast<const float *>(args.h) + (first + row) * kGroups + unit);
    store4(memory.panel + row * WeightsMemory<R>::kPitch + unit, h);
  }
  float sums[P::kRows][kEach][4] = {};
  for (int slot = 0; slot < squares; slot++) {
    __syncthreads();
    stage<kGroups>(static_cast<const float *>(args.w2t) + slot * kGroups, squares * kGroups,
                   kGroups, memory.weight);
    __syncthreads();
    float weights[P::kRows][4];
    slot_weights<R>(args, slot, memory, weights);
#pragma unroll
    for (int i = 0; i < P::kRows; i++) {
      const Place place = memory.places[row_index<P>(i)];
      const int pixel = neighbour_of(args, place, slot);
      if (pixel >= 0)
        add_weighted<T, R>(row_of<T>(args.value, place.image, pixel) + column, weights[i], sums[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < P::kRows; i++) {
    const Place place = memory.places[row_index<P>(i)];
    if (place.y < 0) continue;
    T *out = row_of<T>(args.out, place.image, place.y * static_cast<int>(args.width) + place.x)
        + column;
#pragma unroll
    for (int m = 0; m < kEach; m++) {
      if (args.scale) {
        const Quad<float> scale =
            load4(static_cast<const float *>(args.scale) + m * kGroups + column);
        const Quad<float> shift =
            load4(static_cast<const float *>(args.shift) + m * kGroups + column);
#pragma unroll
        for (int c = 0; c < 4; c++)
          sums[i][m][c] = relu(sums[i][m][c] * scale.at[c] + shift.at[c]);
      }
      store4(out + m * kGroups, quad_of(sums[i][m]));
    }
  }
}

// The gradient of the hidden units, where they are positive.
template <class T, int R>
__global__ void __launch_bounds__(kThreads, 2) patchwise_hidden_grad(const PatchwiseArgs args) {
  typedef typename Shape<R>::Weights P;
  constexpr int kGroups = Shape<R>::kGroups, kEach = Shape<R>::kEach;
  constexpr int kPitch = WeightsMemory<R>::kPitch;
  SAN_DYNAMIC_SHARED(bytes);
  const WeightsMemory<R> memory(bytes);
  const int column = threadIdx.x % P::kAcross * 4, squares = args.footprint * args.footprint;
  find_places<P::kPixels>(args, memory.places);
  __syncthreads();
  Quad<float> grads[P::kRows][kEach] = {};
  int offsets[P::kRows];
  panel_rows<P, kPitch>(offsets);
#pragma unroll
  for (int i = 0; i < P::kRows; i++) {
    const Place place = memory.places[row_index<P>(i)];
    if (place.y < 0) continue;
    const T *grad = row_of<T>(args.grad, place.image,
                              place.y * static_cast<int>(args.width) + place.x) + column;
#pragma unroll
    for (int m = 0; m < kEach; m++) grads[i][m] = load4(grad + m * kGroups);
  }
  float sums[P::kRows][4] = {};
  for (int slot = 0; slot < squares; slot++) {
    stage<kGroups>(static_cast<const float *>(args.w2) + slot * kGroups * kGroups, kGroups,
                   kGroups, memory.weight);
#pragma unroll
    for (int i = 0; i < P::kRows; i++) {
      const Place place = memory.places[row_index<P>(i)];
      const int pixel = neighbour_of(args, place, slot);
      Quad<float> weight_grad = {};
      if (pixel >= 0) {
        const T *value = row_of<T>(args.value, place.image, pixel) + column;
#pragma unroll
        for (int m = 0; m < kEach; m++) {
          const Quad<float> v = load4(value + m * kGroups);
#pragma unroll
          for (int c = 0; c < 4; c++) weight_grad.at[c] += grads[i][m].at[c] * v.at[c];
        }
      }
      store4(memory.panel + offsets[i] + column, weight_grad);
    }
    __syncthreads();
    float part[P::kRows][4] = {};
    product<kGroups, P::kRows, 4, 1>(memory.panel, offsets, memory.weight + column, kGroups, 0,
                                     part);
    add_tile(sums, part);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < P::kRows; i++) {
    if (memory.places[row_index<P>(i)].y < 0) continue;
    const int64 place = (static_cast<int64>(blockIdx.x) * P::kPixels + row_index<P>(i)) * kGroups
        + column;
    const Quad<float> h = load4(static_cast<const float *>(args.h) + place);
#pragma unroll
    for (int c = 0; c < 4; c++)
      if (!(h.at[c] > 0.0f)) sums[i][c] = 0;
    store4(static_cast<float *>(args.hidden_grad) + place, quad_of(sums[i]));
  }
}

// The gradients of query and key. The ReLU of a key in a slot is the same for all centres that
// see it there, so their hidden gradients are summed before the product.
template <class T, int R>
__global__ void __launch_bounds__(kThreads, 2) patchwise_relation_grad(const PatchwiseArgs args) {
  typedef typename Shape<R>::Relation P;
  constexpr int kGroups = Shape<R>::kGroups, kPitch = kGroups + 4;
  SAN_DYNAMIC_SHARED(bytes);
  Place *places = reinterpret_cast<Place *>(bytes);
  float *panel = reinterpret_cast<float *>(places + P::kPixels);
  float *weight = panel + P::kPixels * kPitch;
  const int column = threadIdx.x % P::kAcross * 4, squares = args.footprint * args.footprint;
  const int width = static_cast<int>(args.width);
  const int64 map = args.height * args.width;
  find_places<P::kPixels>(args, places);
  __syncthreads();
  int offsets[P::kRows];
  panel_rows<P, kPitch>(offsets);
  float sums[P::kRows][4] = {}, keys[P::kRows][4] = {};
#pragma unroll
  for (int i = 0; i < P::kRows; i++) {
    const Place place = places[row_index<P>(i)];
    if (place.y < 0) continue;
    const Quad<float> key =
        load4(row_of<T>(args.key, place.image, place.y * width + place.x) + column);
#pragma unroll
    for (int c = 0; c < 4; c++) keys[i][c] = key.at[c];
  }
  for (int slot = -1; slot < squares; slot++) {
    stage<R>(static_cast<const float *>(args.w1) + (1 + slot) * R, (1 + squares) * R, kGroups,
             weight);
    const int all_ways = slot >= 0 && args.padding == kReflect ? 4 : 1;
    for (int i = threadIdx.x; i < P::kPixels * (kGroups / 4); i += kThreads) {
      const int row = i / (kGroups / 4), unit = i % (kGroups / 4) * 4;
      const Place place = places[row];
      Quad<float> sum = {};
      for (int ways = 0; ways < all_ways; ways++) {
        const int centre = centre_of(args, place, slot < 0 ? squares / 2 : slot, ways);
        if (centre < 0) continue;
        const Quad<float> grad = load4(static_cast<const float *>(args.hidden_grad)
                                       + (place.image * map + centre) * kGroups + unit);
#pragma unroll
        for (int c = 0; c < 4; c++) sum.at[c] += grad.at[c];
      }
      store4(panel + row * kPitch + unit, sum);
    }
    __syncthreads();
    float grads[P::kRows][4] = {};
    product<kGroups, P::kRows, 4, 1>(panel, offsets, weight + column, R, 0, grads);
    __syncthreads();
    Quad<float> scale = {}, shift = {};
    if (slot >= 0) {
      scale = load4(static_cast<const float *>(args.key_scale) + slot * R + column);
      shift = load4(static_cast<const float *>(args.key_shift) + slot * R + column);
    }
#pragma unroll
    for (int i = 0; i < P::kRows; i++) {
      if (slot >= 0) {
#pragma unroll
        for (int c = 0; c < 4; c++)
          if (keys[i][c] * scale.at[c] + shift.at[c] > 0.0f)
            sums[i][c] += scale.at[c] * grads[i][c];
        continue;
      }
      const Place place = places[row_index<P>(i)];
      if (place.y < 0) continue;
      const int pixel = place.y * width + place.x;
      const Quad<float> query = load4(row_of<T>(args.query, place.image, pixel) + column);
#pragma unroll
      for (int c = 0; c < 4; c++)
        if (!(query.at[c] > 0.0f)) grads[i][c] = 0;
      store4(row_of<T>(args.grad_query, place.image, pixel) + column, quad_of(grads[i]));
    }
  }
#pragma unroll
  for (int i = 0; i < P::kRows; i++) {
    const Place place = places[row_index<P>(i)];
    if (place.y < 0) continue;
    store4(row_of<T>(args.grad_key, place.image, place.y * width + place.x) + column,
           quad_of(sums[i]));
  }
}

// The gradient of the value: for each slot the weights of the centres that see it there.
template <class T, int R>
__global__ void __launch_bounds__(kThreads, 2) patchwise_value_grad(const PatchwiseArgs args) {
  typedef typename Shape<R>::Weights P;
  constexpr int kGroups = Shape<R>::kGroups, kEach = Shape<R>::kEach;
  SAN_DYNAMIC_SHARED(bytes);
  const WeightsMemory<R> memory(bytes);
  const int column = threadIdx.x % P::kAcross * 4, squares = args.footprint * args.footprint;
  const int all_ways = args.padding == kReflect ? 4 : 1;
  const int64 map = args.height * args.width;
  find_places<P::kPixels>(args, memory.places);
  if (threadIdx.x < 2) memory.found[threadIdx.x] = 0;
  float sums[P::kRows][kEach][4] = {};
  __syncthreads();
  for (int turn = 0; turn < squares * all_ways; turn++) {
    const int slot = turn / all_ways, ways = turn % all_ways;
    for (int i = threadIdx.x; i < P::kPixels * (kGroups / 4); i += kThreads) {
      const int row = i / (kGroups / 4), unit = i % (kGroups / 4) * 4;
      const Place place = memory.places[row];
      const int centre = centre_of(args, place, slot, ways);
      Quad<float> h = {};
      if (unit == 0) memory.centres[row] = centre;
      if (centre >= 0) {
        memory.found[turn % 2] = 1;
        h = load4(static_cast<const float *>(args.h) + (place.image * map + centre) * kGroups
                  + unit);
      }
      store4(memory.panel + row * WeightsMemory<R>::kPitch + unit, h);
    }
    if (ways == 0)
      stage<kGroups>(static_cast<const float *>(args.w2t) + slot * kGroups, squares * kGroups,
                     kGroups, memory.weight);
    __syncthreads();
    const bool any = memory.found[turn % 2];
    if (threadIdx.x == 0) memory.found[(turn + 1) % 2] = 0;
    if (any) {
      float weights[P::kRows][4];
      slot_weights<R>(args, slot, memory, weights);
#pragma unroll
      for (int i = 0; i < P::kRows; i++) {
        const int row = row_index<P>(i), centre = memory.centres[row];
        if (centre >= 0)
          add_weighted<T, R>(row_of<T>(args.grad, memory.places[row].image, centre) + column,
                             weights[i], sums[i]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < P::kRows; i++) {
    const Place place = memory.places[row_index<P>(i)];
    if (place.y < 0) continue;
    T *out = row_of<T>(args.grad_value, place.image,
                       place.y * static_cast<int>(args.width) + place.x) + column;
#pragma unroll
    for (int m = 0; m < kEach; m++) store4(out + m * kGroups, quad_of(sums[i][m]));
  }
}

}  // namespace san
