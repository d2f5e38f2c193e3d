// Patchwise attention of the SAN shapes: its hidden layer and its output.
#include "patchwise.cuh"

namespace san {

template <int R> using HiddenMemory = Memory<typename Shape<R>::Hidden, R, false>;

// Writes the hidden layer's inputs from a slot to the panel; slot -1: the pixel's own query.
template <class T, int R>
SAN_INLINE void fill_inputs(const PatchwiseArgs &args, int slot, const HiddenMemory<R> &memory) {
  for (int i = threadIdx.x; i < Shape<R>::Hidden::kPixels * (R / 4); i += kThreads) {
    const int row = i / (R / 4), r = i % (R / 4) * 4;
    const Place place = memory.places[row];
    Quad<float> v = {};
    if (slot < 0) {
      if (place.y >= 0) v = load4(row_at<T>(args, args.query, place) + r);
    } else {
      const int pixel = neighbour_of(args, place, slot);
      if (pixel >= 0) v = load4(row_of<T>(args.key, place.image, pixel) + r);
      v = scaled(v, args.key_scale, args.key_shift, slot * R + r);
    }
    store4(memory.panel + row * memory.kPitch + r, relu(v));
  }
}

template <class T, int R>
__global__ void __launch_bounds__(kThreads, 2) patchwise_hidden(const PatchwiseArgs args) {
  typedef typename Shape<R>::Hidden P;
  constexpr int kGroups = Shape<R>::kGroups;
  SAN_DYNAMIC_SHARED(bytes);
  const HiddenMemory<R> memory(bytes);
  const int squares = args.footprint * args.footprint;
  find_places<P>(args, memory.places);
  float sums[P::kRows][4];
  set_rows(sums, load4(static_cast<const float *>(args.b1) + P::column()));
  __syncthreads();
  for (int slot = -1; slot < squares; slot++) {
    memory.stage(static_cast<const float *>(args.w1t) + (1 + slot) * R * kGroups, kGroups);
    fill_inputs<T, R>(args, slot, memory);
    __syncthreads();
    memory.multiply_apart(sums);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < P::kRows; i++) {
    if (memory.places[P::row(i)].y < 0) continue;
    float *h = static_cast<float *>(args.h) + P::rank(P::row(i)) * kGroups + P::column();
    store4(h, relu(quad_of(sums[i])));
  }
}

// Writes the pixels' hidden units to the panel.
template <int R>
SAN_INLINE void fill_hidden(const PatchwiseArgs &args, const WeightsMemory<R> &memory) {
  typedef typename Shape<R>::Weights P;
  constexpr int kGroups = Shape<R>::kGroups;
  for (int i = threadIdx.x; i < P::kPixels * (kGroups / 4); i += kThreads) {
    const int row = i / (kGroups / 4), unit = i % (kGroups / 4) * 4;
    Quad<float> h = {};
    if (memory.places[row].y >= 0)
      h = load4(static_cast<const float *>(args.h) + P::rank(row) * kGroups + unit);
    store4(memory.panel + row * memory.kPitch + unit, h);
  }
}

template <class T, int R>
__global__ void __launch_bounds__(kThreads, 2) patchwise_attend(const PatchwiseArgs args) {
  typedef typename Shape<R>::Weights P;
  constexpr int kGroups = Shape<R>::kGroups, kEach = Shape<R>::kEach;
  SAN_DYNAMIC_SHARED(bytes);
  const WeightsMemory<R> memory(bytes);
  const int column = P::column(), squares = args.footprint * args.footprint;
  find_places<P>(args, memory.places);
  __syncthreads();
  fill_hidden<R>(args, memory);
  Quad<float> sums[P::kRows][kEach] = {};
  for (int slot = 0; slot < squares; slot++) {
    __syncthreads();
    memory.stage(static_cast<const float *>(args.w2t) + slot * kGroups, squares * kGroups);
    __syncthreads();
    float weights[P::kRows][4];
    slot_weights<R>(args, slot, memory, weights);
#pragma unroll
    for (int i = 0; i < P::kRows; i++) {
      const Place place = memory.places[P::row(i)];
      const int pixel = neighbour_of(args, place, slot);
      if (pixel >= 0)
        add_weighted<T, R>(row_of<T>(args.value, place.image, pixel) + column, weights[i], sums[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < P::kRows; i++) {
    const Place place = memory.places[P::row(i)];
    if (place.y < 0) continue;
    T *out = row_at<T>(args, args.out, place) + column;
#pragma unroll
    for (int m = 0; m < kEach; m++) {
      Quad<float> &sum = sums[i][m];
      if (args.scale) sum = relu(scaled(sum, args.scale, args.shift, m * kGroups + column));
      store4(out + m * kGroups, sum);
    }
  }
}

}  // namespace san
