// Attention of a SAN's first stage: relation 4, 2 groups, 16 channels, footprint 3, a hidden layer
// of 4 (pairwise) or 2 (patchwise). A thread has a pixel and everything about it in registers;
// backward passes compute again what they need. Maps may have any strides.
#pragma once
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

}  // namespace san
