// Patchwise attention of the SAN shapes: its gradients.
#include "patchwise.cuh"

namespace san {

// A gradient where the value before a ReLU is positive.
SAN_INLINE Quad<float> masked(Quad<float> grad, const Quad<float> &value) {
#pragma unroll
  for (int c = 0; c < 4; c++)
    if (!(value.at[c] > 0.0f)) grad.at[c] = 0;
  return grad;
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

// Writes the gradients of a slot's weights to the panel.
template <class T, int R>
SAN_INLINE void fill_weight_grads(const PatchwiseArgs &args, int slot,
                                  const WeightsMemory<R> &memory,
                                  const Quad<float> (&grads)[Shape<R>::Weights::kRows]
                                                            [Shape<R>::kEach]) {
  typedef typename Shape<R>::Weights P;
#pragma unroll
  for (int i = 0; i < P::kRows; i++) {
    const Place place = memory.places[P::row(i)];
    const int pixel = neighbour_of(args, place, slot);
    Quad<float> sum = {};
    if (pixel >= 0) {
      const T *value = row_of<T>(args.value, place.image, pixel) + P::column();
#pragma unroll
      for (int m = 0; m < Shape<R>::kEach; m++)
        add_scaled(sum, grads[i][m], load4(value + m * Shape<R>::kGroups));
    }
    store4(memory.panel + P::row(i) * memory.kPitch + P::column(), sum);
  }
}

// The gradient of the hidden units, where they are positive.
template <class T, int R>
__global__ void __launch_bounds__(kThreads, 2) patchwise_hidden_grad(const PatchwiseArgs args) {
  typedef typename Shape<R>::Weights P;
  constexpr int kGroups = Shape<R>::kGroups, kEach = Shape<R>::kEach;
  SAN_DYNAMIC_SHARED(bytes);
  const WeightsMemory<R> memory(bytes);
  const int column = P::column(), squares = args.footprint * args.footprint;
  find_places<P>(args, memory.places);
  __syncthreads();
  Quad<float> grads[P::kRows][kEach] = {};
#pragma unroll
  for (int i = 0; i < P::kRows; i++) {
    const Place place = memory.places[P::row(i)];
    if (place.y < 0) continue;
    const T *grad = row_at<T>(args, args.grad, place) + column;
#pragma unroll
    for (int m = 0; m < kEach; m++) grads[i][m] = load4(grad + m * kGroups);
  }
  float sums[P::kRows][4] = {};
  for (int slot = 0; slot < squares; slot++) {
    memory.stage(static_cast<const float *>(args.w2) + slot * kGroups * kGroups, kGroups);
    fill_weight_grads<T, R>(args, slot, memory, grads);
    __syncthreads();
    memory.multiply_apart(sums);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < P::kRows; i++) {
    if (memory.places[P::row(i)].y < 0) continue;
    const int64 first = P::rank(P::row(i)) * kGroups + column;
    const Quad<float> h = load4(static_cast<const float *>(args.h) + first);
    store4(static_cast<float *>(args.hidden_grad) + first, masked(quad_of(sums[i]), h));
  }
}

template <int R>
using RelationMemory = Memory<typename Shape<R>::Relation, Shape<R>::kGroups, false>;

// Writes to the panel the hidden gradients of all centres that see a place in a slot, summed;
// slot -1: the place's own.
template <int R>
SAN_INLINE void fill_hidden_grads(const PatchwiseArgs &args, int slot,
                                  const RelationMemory<R> &memory) {
  constexpr int kGroups = Shape<R>::kGroups;
  const int centre_slot = slot < 0 ? args.footprint * args.footprint / 2 : slot;
  const int64 map = args.height * args.width;
  const int all_ways = slot >= 0 && args.padding == kReflect ? 4 : 1;
  for (int i = threadIdx.x; i < Shape<R>::Relation::kPixels * (kGroups / 4); i += kThreads) {
    const int row = i / (kGroups / 4), unit = i % (kGroups / 4) * 4;
    const Place place = memory.places[row];
    Quad<float> sum = {};
    for (int ways = 0; ways < all_ways; ways++) {
      const int centre = centre_of(args, place, centre_slot, ways);
      if (centre < 0) continue;
      const Quad<float> grad = load4(static_cast<const float *>(args.hidden_grad)
                                     + (place.image * map + centre) * kGroups + unit);
#pragma unroll
      for (int c = 0; c < 4; c++) sum.at[c] += grad.at[c];
    }
    store4(memory.panel + row * memory.kPitch + unit, sum);
  }
}

// The gradients of query and key. The ReLU of a key in a slot is the same for all centres that
// see it there, so their hidden gradients are summed before the product.
template <class T, int R>
__global__ void __launch_bounds__(kThreads, 2) patchwise_relation_grad(const PatchwiseArgs args) {
  typedef typename Shape<R>::Relation P;
  SAN_DYNAMIC_SHARED(bytes);
  const RelationMemory<R> memory(bytes);
  const int column = P::column(), squares = args.footprint * args.footprint;
  find_places<P>(args, memory.places);
  __syncthreads();
  Quad<float> sums[P::kRows] = {}, keys[P::kRows] = {};
#pragma unroll
  for (int i = 0; i < P::kRows; i++) {
    const Place place = memory.places[P::row(i)];
    if (place.y >= 0) keys[i] = load4(row_at<T>(args, args.key, place) + column);
  }
  for (int slot = -1; slot < squares; slot++) {
    memory.stage(static_cast<const float *>(args.w1) + (1 + slot) * R, (1 + squares) * R);
    fill_hidden_grads<R>(args, slot, memory);
    __syncthreads();
    float grads[P::kRows][4] = {};
    memory.multiply(grads);
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
          if (keys[i].at[c] * scale.at[c] + shift.at[c] > 0.0f)
            sums[i].at[c] += scale.at[c] * grads[i][c];
        continue;
      }
      const Place place = memory.places[P::row(i)];
      if (place.y < 0) continue;
      const Quad<float> query = load4(row_at<T>(args, args.query, place) + column);
      store4(row_at<T>(args, args.grad_query, place) + column, masked(quad_of(grads[i]), query));
    }
  }
#pragma unroll
  for (int i = 0; i < P::kRows; i++) {
    const Place place = memory.places[P::row(i)];
    if (place.y >= 0) store4(row_at<T>(args, args.grad_key, place) + column, sums[i]);
  }
}

// The gradient of the value: for each slot the weights of the centres that see it there.
template <class T, int R>
__global__ void __launch_bounds__(kThreads, 2) patchwise_value_grad(const PatchwiseArgs args) {
  typedef typename Shape<R>::Weights P;
  constexpr int kGroups = Shape<R>::kGroups, kEach = Shape<R>::kEach;
  SAN_DYNAMIC_SHARED(bytes);
  const WeightsMemory<R> memory(bytes);
  const int column = P::column(), squares = args.footprint * args.footprint;
  const int all_ways = args.padding == kReflect ? 4 : 1;
  const int64 map = args.height * args.width;
  find_places<P>(args, memory.places);
  if (threadIdx.x < 2) memory.found[threadIdx.x] = 0;
  Quad<float> sums[P::kRows][kEach] = {};
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
      store4(memory.panel + row * memory.kPitch + unit, h);
    }
    if (ways == 0)
      memory.stage(static_cast<const float *>(args.w2t) + slot * kGroups, squares * kGroups);
    __syncthreads();
    const bool any = memory.found[turn % 2];
    if (threadIdx.x == 0) memory.found[(turn + 1) % 2] = 0;
    if (any) {
      float weights[P::kRows][4];
      slot_weights<R>(args, slot, memory, weights);
#pragma unroll
      for (int i = 0; i < P::kRows; i++) {
        const int row = P::row(i), centre = memory.centres[row];
        if (centre >= 0)
          add_weighted<T, R>(row_of<T>(args.grad, memory.places[row].image, centre) + column,
                             weights[i], sums[i]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < P::kRows; i++) {
    const Place place = memory.places[P::row(i)];
    if (place.y < 0) continue;
    T *out = row_at<T>(args, args.grad_value, place) + column;
#pragma unroll
    for (int m = 0; m < kEach; m++) store4(out + m * kGroups, sums[i][m]);
  }
}

}  // namespace san
