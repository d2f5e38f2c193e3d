// Attention of a SAN's first stage: relation 4, 2 groups, 16 channels, footprint 3, a hidden layer
// of 4 (pairwise) or 2 (patchwise). A thread has a pixel and everything about it in registers;
// backward passes compute again what they need. Maps may have any strides.
#include "common.cuh"

namespace san {

constexpr int kRelation = 4, kGroups = 2, kChannels = 16, kSide = 3, kSlots = kSide * kSide;

// Copies a matrix to shared memory.
SAN_INLINE void stage(const void *source, int count, float *copy) {
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    copy[i] = static_cast<const float *>(source)[i];
}

template <class T, int N>
SAN_INLINE void read(const Map &map, int64 image, int y, int x, float (&channels)[N]) {
  const T *pixel = at<T>(map, image, y, x, 0);
#pragma unroll
  for (int c = 0; c < N; c++) channels[c] = widen(pixel[c * map.channel]);
}
template <class T, int N>
SAN_INLINE void read(const Map &map, const Pixel &pixel, float (&channels)[N]) {
  read<T>(map, pixel.image, pixel.y, pixel.x, channels);
}
template <class T, int N>
SAN_INLINE void write(const Map &map, const Pixel &pixel, const float (&channels)[N]) {
  T *place = at<T>(map, pixel.image, pixel.y, pixel.x, 0);
#pragma unroll
  for (int c = 0; c < N; c++) place[c * map.channel] = narrow<T>(channels[c]);
}

// relu(sum * scale + shift) where a pass has them.
template <class Args> SAN_INLINE void finish(const Args &args, float (&sums)[kChannels]) {
  if (!args.scale) return;
#pragma unroll
  for (int c = 0; c < kChannels; c++)
    sums[c] = relu(sums[c] * static_cast<const float *>(args.scale)[c]
                   + static_cast<const float *>(args.shift)[c]);
}

// What all kernels begin with: the weights of the block and the pixel of the thread; false where
// there is none.
template <class Args, class Weights>
SAN_INLINE bool start(const Args &args, Weights &weights, Pixel &pixel) {
  stage(args, weights);
  __syncthreads();
  const int64 rank = global_index();
  if (rank >= args.images * args.height * args.width) return false;
  pixel = pixel_of(rank, args.height, args.width);
  return true;
}

// Adds a neighbour's value under its weights.
SAN_INLINE void add_weighted(const float (&weight)[kGroups], const float (&value)[kChannels],
                             float (&sums)[kChannels]) {
#pragma unroll
  for (int c = 0; c < kChannels; c++) sums[c] += weight[c % kGroups] * value[c];
}

// The gradient of the two weights with which `grad` summed `value`.
SAN_INLINE void weight_grads(const float (&grad)[kChannels], const float (&value)[kChannels],
                             float (&grads)[kGroups]) {
  grads[0] = grads[1] = 0;
#pragma unroll
  for (int c = 0; c < kChannels; c++) grads[c % kGroups] += grad[c] * value[c];
}

constexpr int kPairHidden = 4;

struct PairWeights {
  float w1[kPairHidden * kRelation], w2[kGroups * kPairHidden];
};

// One pair: its relation and hidden layer before the ReLUs, and its logits.
struct Pair {
  float t[kRelation], h[kPairHidden], logits[kGroups];
};

SAN_INLINE Pair make_pair(const PairwiseArgs &args, const PairWeights &weights,
                          const float (&query)[kRelation], const float (&key)[kRelation],
                          int64 pixel_of_map, int slot) {
  Pair pair;
  const int64 row = (args.table_per_pixel ? pixel_of_map : 0) * (kSlots + 1) + slot;
  const float *table = static_cast<const float *>(args.table) + row * kPairHidden;
#pragma unroll
  for (int r = 0; r < kRelation; r++) pair.t[r] = query[r] - key[r];
#pragma unroll
  for (int u = 0; u < kPairHidden; u++) {
    pair.h[u] = table[u];
#pragma unroll
    for (int r = 0; r < kRelation; r++)
      pair.h[u] += weights.w1[u * kRelation + r] * relu(pair.t[r]);
  }
#pragma unroll
  for (int g = 0; g < kGroups; g++) {
    pair.logits[g] = 0;
#pragma unroll
    for (int u = 0; u < kPairHidden; u++)
      pair.logits[g] += weights.w2[g * kPairHidden + u] * relu(pair.h[u]);
  }
  return pair;
}

// Adds sign times the gradient of a pair's relation for that of its logits.
SAN_INLINE void add_relation_grad(const PairWeights &weights, const Pair &pair,
                                  const float (&logit_grads)[kGroups], float sign,
                                  float (&sums)[kRelation]) {
  float hidden[kPairHidden];
#pragma unroll
  for (int u = 0; u < kPairHidden; u++)
    hidden[u] = pair.h[u] > 0.0f ? weights.w2[u] * logit_grads[0]
                                   + weights.w2[kPairHidden + u] * logit_grads[1] : 0.0f;
#pragma unroll
  for (int r = 0; r < kRelation; r++) {
    float grad = 0;
#pragma unroll
    for (int u = 0; u < kPairHidden; u++) grad += weights.w1[u * kRelation + r] * hidden[u];
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
  stage(args.w1, kPairHidden * kRelation, weights.w1);
  stage(args.w2, kGroups * kPairHidden, weights.w2);
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
#pragma unroll
    for (int g = 0; g < kGroups; g++) alpha[g] = place.times * expf(pair.logits[g] - scale[g]);
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
    float value[kChannels];
    read<T>(args.value, pixel.image, place.y, place.x, value);
    weight_grads(grad, value, grads[slot]);
#pragma unroll
    for (int g = 0; g < kGroups; g++)
      dots[g] += place.times * expf(pair.logits[g] - scale[g]) * grads[slot][g];
  }
#pragma unroll
  for (int slot = 0; slot <= kSlots; slot++) {
    const Slot place = slot_of(args, pixel, slot);
    if (place.times == 0) continue;
    const Pair pair = pair_of<T>(args, weights, pixel, query, place, slot);
    float logit_grads[kGroups];
#pragma unroll
    for (int g = 0; g < kGroups; g++)
      logit_grads[g] = place.times * expf(pair.logits[g] - scale[g])
          * ((slot < kSlots ? grads[slot % kSlots][g] : 0.0f) - dots[g]);
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
#pragma unroll
    for (int g = 0; g < kGroups; g++) {
      alpha[g] = times * expf(pair.logits[g] - kept[g]);
      grads[g] = alpha[g] * (grads[g] - kept[kGroups + g]);
    }
    add_relation_grad(weights, pair, grads, -1.0f, sums);
    add_weighted(alpha, grad, value_sums);
  }
  write<T>(args.grad_key, pixel, sums);
  write<T>(args.grad_value, pixel, value_sums);
}

constexpr int kPatchHidden = 2, kInputs = (1 + kSlots) * kRelation;

struct PatchWeights {
  float w1[kPatchHidden * kInputs], b1[kPatchHidden];
  float scale[kSlots * kRelation], shift[kSlots * kRelation];
  float w2[kSlots * kGroups * kPatchHidden], b2[kSlots * kGroups];
};

SAN_INLINE void stage(const PatchwiseArgs &args, PatchWeights &weights) {
  stage(args.w1, kPatchHidden * kInputs, weights.w1);
  stage(args.b1, kPatchHidden, weights.b1);
  stage(args.key_scale, kSlots * kRelation, weights.scale);
  stage(args.key_shift, kSlots * kRelation, weights.shift);
  stage(args.w2, kSlots * kGroups * kPatchHidden, weights.w2);
  stage(args.b2, kSlots * kGroups, weights.b2);
}

// The row and column of a neighbour, or false outside a map padded with zeros.
SAN_INLINE bool patch_neighbour(const PatchwiseArgs &args, const Pixel &pixel, int slot, int &y,
                                int &x) {
  y = neighbour(args.padding, pixel.y + slot / kSide - 1, static_cast<int>(args.height));
  x = neighbour(args.padding, pixel.x + slot % kSide - 1, static_cast<int>(args.width));
  return y >= 0 && x >= 0;
}

template <class T>
SAN_INLINE void patch_hidden(const PatchwiseArgs &args, const PatchWeights &weights,
                             const Pixel &pixel, const float (&query)[kRelation],
                             float (&h)[kPatchHidden]) {
#pragma unroll
  for (int u = 0; u < kPatchHidden; u++) {
    h[u] = weights.b1[u];
#pragma unroll
    for (int r = 0; r < kRelation; r++) h[u] += weights.w1[u * kInputs + r] * relu(query[r]);
  }
#pragma unroll
  for (int slot = 0; slot < kSlots; slot++) {
    float key[kRelation] = {};
    int y, x;
    if (patch_neighbour(args, pixel, slot, y, x)) read<T>(args.key, pixel.image, y, x, key);
#pragma unroll
    for (int r = 0; r < kRelation; r++) {
      const int place = slot * kRelation + r;
      const float input = relu(key[r] * weights.scale[place] + weights.shift[place]);
#pragma unroll
      for (int u = 0; u < kPatchHidden; u++)
        h[u] += weights.w1[u * kInputs + kRelation + place] * input;
    }
  }
#pragma unroll
  for (int u = 0; u < kPatchHidden; u++) h[u] = relu(h[u]);
}

SAN_INLINE void patch_weights(const PatchWeights &weights, const float (&h)[kPatchHidden],
                              int slot, float (&result)[kGroups]) {
#pragma unroll
  for (int g = 0; g < kGroups; g++) {
    const int row = slot * kGroups + g;
    result[g] = weights.b2[row];
#pragma unroll
    for (int u = 0; u < kPatchHidden; u++) result[g] += weights.w2[row * kPatchHidden + u] * h[u];
  }
}

template <class T>
__global__ void __launch_bounds__(256) narrow_patchwise_forward(const PatchwiseArgs args) {
  __shared__ PatchWeights weights;
  Pixel pixel;
  if (!start(args, weights, pixel)) return;
  float query[kRelation], h[kPatchHidden], sums[kChannels] = {};
  read<T>(args.query, pixel, query);
  patch_hidden<T>(args, weights, pixel, query, h);
#pragma unroll 1
  for (int slot = 0; slot < kSlots; slot++) {
    int y, x;
    if (!patch_neighbour(args, pixel, slot, y, x)) continue;
    float value[kChannels], weight[kGroups];
    read<T>(args.value, pixel.image, y, x, value);
    patch_weights(weights, h, slot, weight);
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
  float query[kRelation], grad[kChannels], h[kPatchHidden], hidden_grad[kPatchHidden] = {};
  read<T>(args.query, pixel, query);
  read<T>(args.grad, pixel, grad);
  patch_hidden<T>(args, weights, pixel, query, h);
#pragma unroll 1
  for (int slot = 0; slot < kSlots; slot++) {
    int y, x;
    if (!patch_neighbour(args, pixel, slot, y, x)) continue;
    float value[kChannels], grads[kGroups];
    read<T>(args.value, pixel.image, y, x, value);
    weight_grads(grad, value, grads);
#pragma unroll
    for (int g = 0; g < kGroups; g++)
#pragma unroll
      for (int u = 0; u < kPatchHidden; u++)
        hidden_grad[u] += weights.w2[(slot * kGroups + g) * kPatchHidden + u] * grads[g];
  }
  float sums[kRelation];
#pragma unroll
  for (int u = 0; u < kPatchHidden; u++) {
    if (!(h[u] > 0.0f)) hidden_grad[u] = 0;
    static_cast<float *>(args.h)[pixel.rank * kPatchHidden + u] = h[u];
    static_cast<float *>(args.hidden_grad)[pixel.rank * kPatchHidden + u] = hidden_grad[u];
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
    const float *hidden_grad = static_cast<const float *>(args.hidden_grad) + rank * kPatchHidden;
#pragma unroll
    for (int r = 0; r < kRelation; r++) {
      const int place = slot * kRelation + r;
      if (key[r] * weights.scale[place] + weights.shift[place] > 0.0f)
        sums[r] += weights.scale[place]
            * (weights.w1[kRelation + place] * hidden_grad[0]
               + weights.w1[kInputs + kRelation + place] * hidden_grad[1]);
    }
    float h[kPatchHidden], weight[kGroups], grad[kChannels];
#pragma unroll
    for (int u = 0; u < kPatchHidden; u++)
      h[u] = static_cast<const float *>(args.h)[rank * kPatchHidden + u];
    patch_weights(weights, h, slot, weight);
    read<T>(args.grad, pixel.image, y, x, grad);
    add_weighted(weight, grad, value_sums);
  }
  write<T>(args.grad_key, pixel, sums);
  write<T>(args.grad_value, pixel, value_sums);
}

}  // namespace san
