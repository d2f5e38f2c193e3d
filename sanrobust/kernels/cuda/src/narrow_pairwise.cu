// Pairwise attention of a SAN's first stage.
#include "narrow.cuh"

namespace san {

constexpr int kHidden = 4;

struct PairWeights {
  float w1[kHidden * kRelation], w2[kGroups * kHidden];
};

// One pair: its relation and hidden layer before the ReLUs, and its logits.
struct Pair {
  float t[kRelation], h[kHidden], logits[kGroups];
};

SAN_INLINE Pair make_pair(const PairwiseArgs &args, const PairWeights &weights,
                          const float (&query)[kRelation], const float (&key)[kRelation],
                          int64 pixel_of_map, int slot) {
  Pair pair;
  const int64 row = (args.table_per_pixel ? pixel_of_map : 0) * (kSlots + 1) + slot;
  const float *table = static_cast<const float *>(args.table) + row * kHidden;
#pragma unroll
  for (int r = 0; r < kRelation; r++) pair.t[r] = query[r] - key[r];
#pragma unroll
  for (int u = 0; u < kHidden; u++) {
    pair.h[u] = table[u];
#pragma unroll
    for (int r = 0; r < kRelation; r++)
      pair.h[u] += weights.w1[u * kRelation + r] * relu(pair.t[r]);
  }
#pragma unroll
  for (int g = 0; g < kGroups; g++) {
    pair.logits[g] = 0;
#pragma unroll
    for (int u = 0; u < kHidden; u++)
      pair.logits[g] += weights.w2[g * kHidden + u] * relu(pair.h[u]);
  }
  return pair;
}

// Adds sign times the gradient of a pair's relation for that of its logits.
SAN_INLINE void add_relation_grad(const PairWeights &weights, const Pair &pair,
                                  const float (&logit_grads)[kGroups], float sign,
                                  float (&sums)[kRelation]) {
  float hidden[kHidden];
#pragma unroll
  for (int u = 0; u < kHidden; u++)
    hidden[u] = pair.h[u] > 0.0f ? weights.w2[u] * logit_grads[0]
                                   + weights.w2[kHidden + u] * logit_grads[1] : 0.0f;
#pragma unroll
  for (int r = 0; r < kRelation; r++) {
    float grad = 0;
#pragma unroll
    for (int u = 0; u < kHidden; u++) grad += weights.w1[u * kRelation + r] * hidden[u];
    if (pair.t[r] > 0.0f) sums[r] += sign * grad;
  }
}

// The neighbour in a slot; times is 0 if there is none. Slot kSlots: all those outside.
struct Slot {
  int y, x, times;
};
SAN_INLINE Slot slot_of(const PairwiseArgs &args, const Pixel &pixel, int slot) {
  const int height = static_cast<int>(args.height), width = static_cast<int>(args.width);
  if (slot == kSlots) {
    const int rows = 1 + (pixel.y > 0) + (pixel.y < height - 1);
    const int columns = 1 + (pixel.x > 0) + (pixel.x < width - 1);
    return {-1, -1, args.padding == kZeros ? kSlots - rows * columns : 0};
  }
  Slot place = {pixel.y + slot / kSide - 1, pixel.x + slot % kSide - 1, 0};
  if (place.y < 0 || place.y >= height || place.x < 0 || place.x >= width) return place;
  place.times = args.padding == kZeros ? 1 : multiplicity(pixel.y, place.y, height, 1)
      * multiplicity(pixel.x, place.x, width, 1);
  return place;
}

template <class T>
SAN_INLINE Pair pair_of(const PairwiseArgs &args, const PairWeights &weights, const Pixel &pixel,
                        const float (&query)[kRelation], const Slot &place, int slot) {
  float key[kRelation] = {};
  if (place.y >= 0) read<T>(args.key, pixel.image, place.y, place.x, key);
  return make_pair(args, weights, query, key, pixel.y * args.width + pixel.x, slot);
}

// A pair's weights, multiplicity included; scale: logarithms of the softmax's denominators.
SAN_INLINE void attention(const Pair &pair, int times, const float *scale,
                          float (&alpha)[kGroups]) {
#pragma unroll
  for (int g = 0; g < kGroups; g++) alpha[g] = times * expf(pair.logits[g] - scale[g]);
}

// Logarithms of the softmax's denominators.
template <class T>
SAN_INLINE void denominators(const PairwiseArgs &args, const PairWeights &weights,
                             const Pixel &pixel, const float (&query)[kRelation],
                             float (&result)[kGroups]) {
  float logits[kSlots + 1][kGroups];
  int times[kSlots + 1];
  float highest[kGroups] = {};
#pragma unroll
  for (int s = 0; s <= kSlots; s++) {
    // From the centre on, which always exists.
    const int slot = s == 0 ? kSlots / 2 : s <= kSlots / 2 ? s - 1 : s;
    const Slot place = slot_of(args, pixel, slot);
    times[s] = place.times;
    if (place.times == 0) continue;
    const Pair pair = pair_of<T>(args, weights, pixel, query, place, slot);
#pragma unroll
    for (int g = 0; g < kGroups; g++) {
      logits[s][g] = pair.logits[g];
      highest[g] = s == 0 ? pair.logits[g] : larger(highest[g], pair.logits[g]);
    }
  }
#pragma unroll
  for (int g = 0; g < kGroups; g++) {
    float total = 0;
#pragma unroll
    for (int s = 0; s <= kSlots; s++)
      if (times[s]) total += times[s] * expf(logits[s][g] - highest[g]);
    result[g] = highest[g] + logf(total);
  }
}

SAN_INLINE void stage(const PairwiseArgs &args, PairWeights &weights) {
  stage(args.w1, kHidden * kRelation, weights.w1);
  stage(args.w2, kGroups * kHidden, weights.w2);
}

template <class T>
__global__ void __launch_bounds__(256) narrow_pairwise_forward(const PairwiseArgs args) {
  __shared__ PairWeights weights;
  Pixel pixel;
  if (!start(args, weights, pixel)) return;
  float query[kRelation], scale[kGroups], sums[kChannels] = {};
  read<T>(args.query, pixel, query);
  denominators<T>(args, weights, pixel, query, scale);
#pragma unroll 1
  for (int slot = 0; slot < kSlots; slot++) {
    const Slot place = slot_of(args, pixel, slot);
    if (place.times == 0) continue;
    const Pair pair = pair_of<T>(args, weights, pixel, query, place, slot);
    float value[kChannels], alpha[kGroups];
    read<T>(args.value, pixel.image, place.y, place.x, value);
    attention(pair, place.times, scale, alpha);
    add_weighted(alpha, value, sums);
  }
  finish(args, sums);
  write<T>(args.out, pixel, sums);
}

// The gradient of the query; for the key's pass, dots holds denominators and dot products.
template <class T>
__global__ void __launch_bounds__(256) narrow_pairwise_query(const PairwiseArgs args) {
  __shared__ PairWeights weights;
  Pixel pixel;
  if (!start(args, weights, pixel)) return;
  float query[kRelation], scale[kGroups], grad[kChannels], dots[kGroups] = {};
  float grads[kSlots][kGroups], sums[kRelation] = {};
  read<T>(args.query, pixel, query);
  read<T>(args.grad, pixel, grad);
  denominators<T>(args, weights, pixel, query, scale);
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    const Slot place = slot_of(args, pixel, slot);
    if (place.times == 0) continue;
    const Pair pair = pair_of<T>(args, weights, pixel, query, place, slot);
    float value[kChannels], alpha[kGroups];
    read<T>(args.value, pixel.image, place.y, place.x, value);
    weight_grads(grad, value, grads[slot]);
    attention(pair, place.times, scale, alpha);
#pragma unroll
    for (int g = 0; g < kGroups; g++) dots[g] += alpha[g] * grads[slot][g];
  }
#pragma unroll
  for (int slot = 0; slot <= kSlots; slot++) {
    const Slot place = slot_of(args, pixel, slot);
    if (place.times == 0) continue;
    const Pair pair = pair_of<T>(args, weights, pixel, query, place, slot);
    float alpha[kGroups], logit_grads[kGroups];
    attention(pair, place.times, scale, alpha);
#pragma unroll
    for (int g = 0; g < kGroups; g++)
      logit_grads[g] = alpha[g] * ((slot < kSlots ? grads[slot % kSlots][g] : 0.0f) - dots[g]);
    add_relation_grad(weights, pair, logit_grads, 1.0f, sums);
  }
  float *kept = static_cast<float *>(args.dots) + pixel.rank * 2 * kGroups;
#pragma unroll
  for (int g = 0; g < kGroups; g++) {
    kept[g] = scale[g];
    kept[kGroups + g] = dots[g];
  }
  write<T>(args.grad_query, pixel, sums);
}

// The gradients of key and value, gathered from the pixels whose windows they are in.
template <class T>
__global__ void __launch_bounds__(256) narrow_pairwise_key(const PairwiseArgs args) {
  __shared__ PairWeights weights;
  Pixel pixel;
  if (!start(args, weights, pixel)) return;
  float key[kRelation], value[kChannels], sums[kRelation] = {}, value_sums[kChannels] = {};
  read<T>(args.key, pixel, key);
  read<T>(args.value, pixel, value);
#pragma unroll 1
  for (int s = 0; s < kSlots; s++) {
    const int y = pixel.y + s / kSide - 1, x = pixel.x + s % kSide - 1, slot = kSlots - 1 - s;
    if (y < 0 || y >= args.height || x < 0 || x >= args.width) continue;
    const Pixel centre = {pixel.image,
                          pixel.rank + (y - pixel.y) * args.width + (x - pixel.x), y, x};
    const int times = slot_of(args, centre, slot).times;
    float query[kRelation], grad[kChannels], grads[kGroups], alpha[kGroups];
    read<T>(args.query, centre.image, y, x, query);
    read<T>(args.grad, centre.image, y, x, grad);
    const Pair pair = make_pair(args, weights, query, key, y * args.width + x, slot);
    const float *kept = static_cast<const float *>(args.dots) + centre.rank * 2 * kGroups;
    weight_grads(grad, value, grads);
    attention(pair, times, kept, alpha);
#pragma unroll
    for (int g = 0; g < kGroups; g++) grads[g] = alpha[g] * (grads[g] - kept[kGroups + g]);
    add_relation_grad(weights, pair, grads, -1.0f, sums);
    add_weighted(alpha, grad, value_sums);
  }
  write<T>(args.grad_key, pixel, sums);
  write<T>(args.grad_value, pixel, value_sums);
}

}  // namespace san
