// Patchwise attention of a SAN's first stage.
#include "narrow.cuh"

namespace san {

constexpr int kHidden = 2, kInputs = (1 + kSlots) * kRelation;

struct PatchWeights {
  float w1[kHidden * kInputs], b1[kHidden];
  float scale[kSlots * kRelation], shift[kSlots * kRelation];
  float w2[kSlots * kGroups * kHidden], b2[kSlots * kGroups];
};

SAN_INLINE void stage(const PatchwiseArgs &args, PatchWeights &weights) {
  stage(args.w1, kHidden * kInputs, weights.w1);
  stage(args.b1, kHidden, weights.b1);
  stage(args.key_scale, kSlots * kRelation, weights.scale);
  stage(args.key_shift, kSlots * kRelation, weights.shift);
  stage(args.w2, kSlots * kGroups * kHidden, weights.w2);
  stage(args.b2, kSlots * kGroups, weights.b2);
}

// The row and column of a neighbour, or false outside a map padded with zeros.
SAN_INLINE bool find_neighbour(const PatchwiseArgs &args, const Pixel &pixel, int slot, int &y,
                               int &x) {
  y = neighbour(args.padding, pixel.y + slot / kSide - 1, static_cast<int>(args.height));
  x = neighbour(args.padding, pixel.x + slot % kSide - 1, static_cast<int>(args.width));
  return y >= 0 && x >= 0;
}

// The hidden units of a pixel.
template <class T>
SAN_INLINE void find_hidden(const PatchwiseArgs &args, const PatchWeights &weights,
                            const Pixel &pixel, const float (&query)[kRelation],
                            float (&h)[kHidden]) {
#pragma unroll
  for (int u = 0; u < kHidden; u++) {
    h[u] = weights.b1[u];
#pragma unroll
    for (int r = 0; r < kRelation; r++) h[u] += weights.w1[u * kInputs + r] * relu(query[r]);
  }
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    float key[kRelation] = {};
    int y, x;
    if (find_neighbour(args, pixel, slot, y, x)) read<T>(args.key, pixel.image, y, x, key);
#pragma unroll
    for (int r = 0; r < kRelation; r++) {
      const int place = slot * kRelation + r;
      const float input = relu(key[r] * weights.scale[place] + weights.shift[place]);
#pragma unroll
      for (int u = 0; u < kHidden; u++)
        h[u] += weights.w1[u * kInputs + kRelation + place] * input;
    }
  }
#pragma unroll
  for (int u = 0; u < kHidden; u++) h[u] = relu(h[u]);
}

// The weights of the neighbour in a slot.
SAN_INLINE void slot_weights(const PatchWeights &weights, const float (&h)[kHidden], int slot,
                             float (&result)[kGroups]) {
#pragma unroll
  for (int g = 0; g < kGroups; g++) {
    const int row = slot * kGroups + g;
    result[g] = weights.b2[row];
#pragma unroll
    for (int u = 0; u < kHidden; u++) result[g] += weights.w2[row * kHidden + u] * h[u];
  }
}

template <class T>
__global__ void __launch_bounds__(256) narrow_patchwise_forward(const PatchwiseArgs args) {
  __shared__ PatchWeights weights;
  Pixel pixel;
  if (!start(args, weights, pixel)) return;
  float query[kRelation], h[kHidden], sums[kChannels] = {};
  read<T>(args.query, pixel, query);
  find_hidden<T>(args, weights, pixel, query, h);
#pragma unroll 1
  for (int slot = 0; slot < kSlots; slot++) {
    int y, x;
    if (!find_neighbour(args, pixel, slot, y, x)) continue;
    float value[kChannels], weight[kGroups];
    read<T>(args.value, pixel.image, y, x, value);
    slot_weights(weights, h, slot, weight);
    add_weighted(weight, value, sums);
  }
  finish(args, sums);
  write<T>(args.out, pixel, sums);
}

// The gradient of the query; the hidden layer and its gradient for the key's pass.
template <class T>
__global__ void __launch_bounds__(256) narrow_patchwise_query(const PatchwiseArgs args) {
  __shared__ PatchWeights weights;
  Pixel pixel;
  if (!start(args, weights, pixel)) return;
  float query[kRelation], grad[kChannels], h[kHidden], hidden_grad[kHidden] = {};
  read<T>(args.query, pixel, query);
  read<T>(args.grad, pixel, grad);
  find_hidden<T>(args, weights, pixel, query, h);
#pragma unroll 1
  for (int slot = 0; slot < kSlots; slot++) {
    int y, x;
    if (!find_neighbour(args, pixel, slot, y, x)) continue;
    float value[kChannels], grads[kGroups];
    read<T>(args.value, pixel.image, y, x, value);
    weight_grads(grad, value, grads);
#pragma unroll
    for (int g = 0; g < kGroups; g++)
#pragma unroll
      for (int u = 0; u < kHidden; u++)
        hidden_grad[u] += weights.w2[(slot * kGroups + g) * kHidden + u] * grads[g];
  }
  float sums[kRelation];
#pragma unroll
  for (int u = 0; u < kHidden; u++) {
    if (!(h[u] > 0.0f)) hidden_grad[u] = 0;
    static_cast<float *>(args.h)[pixel.rank * kHidden + u] = h[u];
    static_cast<float *>(args.hidden_grad)[pixel.rank * kHidden + u] = hidden_grad[u];
  }
#pragma unroll
  for (int r = 0; r < kRelation; r++)
    sums[r] = query[r] > 0.0f ? weights.w1[r] * hidden_grad[0]
                                + weights.w1[kInputs + r] * hidden_grad[1] : 0.0f;
  write<T>(args.grad_query, pixel, sums);
}

template <class T>
__global__ void __launch_bounds__(256) narrow_patchwise_key(const PatchwiseArgs args) {
  __shared__ PatchWeights weights;
  Pixel pixel;
  if (!start(args, weights, pixel)) return;
  const int height = static_cast<int>(args.height), width = static_cast<int>(args.width);
  float key[kRelation], sums[kRelation] = {}, value_sums[kChannels] = {};
  read<T>(args.key, pixel, key);
#pragma unroll 1
  for (int turn = 0; turn < kSlots * (args.padding == kReflect ? 4 : 1); turn++) {
    const int slot = args.padding == kReflect ? turn / 4 : turn;
    const int ways = args.padding == kReflect ? turn % 4 : 0;
    const int y = origin(pixel.y, slot / kSide - 1, height, 1, height, ways & 1);
    const int x = origin(pixel.x, slot % kSide - 1, width, 1, width, ways & 2);
    if (y < 0 || x < 0) continue;
    const int64 rank = pixel.rank + (y - pixel.y) * args.width + (x - pixel.x);
    const float *hidden_grad = static_cast<const float *>(args.hidden_grad) + rank * kHidden;
#pragma unroll
    for (int r = 0; r < kRelation; r++) {
      const int place = slot * kRelation + r;
      if (key[r] * weights.scale[place] + weights.shift[place] > 0.0f)
        sums[r] += weights.scale[place]
            * (weights.w1[kRelation + place] * hidden_grad[0]
               + weights.w1[kInputs + kRelation + place] * hidden_grad[1]);
    }
    float h[kHidden], weight[kGroups], grad[kChannels];
#pragma unroll
    for (int u = 0; u < kHidden; u++)
      h[u] = static_cast<const float *>(args.h)[rank * kHidden + u];
    slot_weights(weights, h, slot, weight);
    read<T>(args.grad, pixel.image, y, x, grad);
    add_weighted(weight, grad, value_sums);
  }
  write<T>(args.grad_key, pixel, sums);
  write<T>(args.grad_value, pixel, value_sums);
}

}  // namespace san
