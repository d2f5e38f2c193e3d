// What every kernel shares: storage types, padding arithmetic, vector access, register products.
#pragma once
#include "args.cuh"

namespace san {

#define SAN_INLINE __device__ __forceinline__
#ifndef SAN_SHIM
#define SAN_DYNAMIC_SHARED(name) extern __shared__ __align__(16) char name[]
#endif

// Storage only: all arithmetic is in float. Defined here so that no CUDA header is needed.
struct Half {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};

template <class T> struct Accumulator {
  typedef float Type;
};
template <> struct Accumulator<double> {
  typedef double Type;
};
template <class T> using Acc = typename Accumulator<T>::Type;

SAN_INLINE float widen(float v) { return v; }
SAN_INLINE double widen(double v) { return v; }
template <class T> SAN_INLINE T narrow(Acc<T> v) { return v; }

#ifdef SAN_SHIM
SAN_INLINE float widen(Half v) { return shim::half_to_float(v.bits); }
SAN_INLINE float widen(BFloat16 v) { return shim::bfloat16_to_float(v.bits); }
template <> SAN_INLINE Half narrow<Half>(float v) { return {shim::float_to_half(v)}; }
template <> SAN_INLINE BFloat16 narrow<BFloat16>(float v) { return {shim::float_to_bfloat16(v)}; }
#else
SAN_INLINE float widen(Half v) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(v.bits));
  return result;
}
SAN_INLINE float widen(BFloat16 v) { return __uint_as_float(static_cast<unsigned>(v.bits) << 16); }
template <> SAN_INLINE Half narrow<Half>(float v) {
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(v));
  return result;
}
template <> SAN_INLINE BFloat16 narrow<BFloat16>(float v) {
  BFloat16 result;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(v));
#else
  const unsigned bits = __float_as_uint(v);
  result.bits = static_cast<unsigned short>(
      v != v ? 0x7fff : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
  return result;
}
#endif

// Comparisons are written so that NaN stays NaN.
template <class A> SAN_INLINE A relu(A v) { return v < A(0) ? A(0) : v; }
template <class A> SAN_INLINE A larger(A a, A b) { return b > a || b != b ? b : a; }

SAN_INLINE int64 global_index() {
  return static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// Neighbouring elements in one access.
template <class T, int N> struct alignas(N * sizeof(T)) Run {
  T at[N];
};
template <class T> using Quad = Run<T, 4>;
template <class T> using Duo = Run<T, 2>;

template <int N, class T> SAN_INLINE Run<float, N> load(const T *p) {
  const Run<T, N> stored = *reinterpret_cast<const Run<T, N> *>(p);
  Run<float, N> v;
#pragma unroll
  for (int c = 0; c < N; c++) v.at[c] = widen(stored.at[c]);
  return v;
}
template <class T, int N> SAN_INLINE void store(T *p, const Run<float, N> &v) {
  Run<T, N> stored;
#pragma unroll
  for (int c = 0; c < N; c++) stored.at[c] = narrow<T>(v.at[c]);
  *reinterpret_cast<Run<T, N> *>(p) = stored;
}
template <class T> SAN_INLINE Quad<float> load4(const T *p) { return load<4>(p); }
template <class T> SAN_INLINE void store4(T *p, const Quad<float> &v) { store(p, v); }

SAN_INLINE Quad<float> quad_of(const float *v) { return {{v[0], v[1], v[2], v[3]}}; }

SAN_INLINE Quad<float> relu(Quad<float> v) {
#pragma unroll
  for (int c = 0; c < 4; c++) v.at[c] = relu(v.at[c]);
  return v;
}

// v * scale + shift for four channels from `first` on.
SAN_INLINE Quad<float> scaled(Quad<float> v, const void *scales, const void *shifts, int first) {
  const Quad<float> scale = load4(static_cast<const float *>(scales) + first);
  const Quad<float> shift = load4(static_cast<const float *>(shifts) + first);
#pragma unroll
  for (int c = 0; c < 4; c++) v.at[c] = v.at[c] * scale.at[c] + shift.at[c];
  return v;
}

template <int N> SAN_INLINE void add_scaled(Run<float, N> &sum, const Run<float, N> &weight,
                                            const Run<float, N> &v) {
#pragma unroll
  for (int c = 0; c < N; c++) sum.at[c] += weight.at[c] * v.at[c];
}

// The index of position i of n pixels continued by one reflection.
SAN_INLINE int reflect(int i, int n) { return i < 0 ? -i : i >= n ? 2 * (n - 1) - i : i; }

// How many positions i - reach .. i + reach, continued by reflection, are j (one of them).
SAN_INLINE int multiplicity(int i, int j, int n, int reach) {
  return 1 + (j > 0 && i + j <= reach) + (j < n - 1 && 2 * (n - 1) - j - i <= reach);
}

// The output position whose neighbour at displacement d is pixel i: itself, or through its mirror
// image beyond the border on that side; -1 if there is none.
SAN_INLINE int origin(int i, int d, int n, int stride, int outputs, bool mirrored) {
  if (mirrored) {
    if (d == 0 || i == (d < 0 ? 0 : n - 1)) return -1;
    i = d < 0 ? -i : 2 * (n - 1) - i;
  }
  const int start = i - d;
  if (start < 0 || start % stride != 0) return -1;
  return start / stride < outputs ? start / stride : -1;
}

// The pixel at displacement d from i, or -1 outside a map padded with zeros.
SAN_INLINE int neighbour(int padding, int i, int n) {
  if (padding == kReflect) return reflect(i, n);
  return i >= 0 && i < n ? i : -1;
}

template <class T> SAN_INLINE T *at(const Map &map, int64 image, int64 y, int64 x, int64 channel) {
  return static_cast<T *>(map.data) + image * map.image + y * map.row + x * map.column
      + channel * map.channel;
}

// The channels of a pixel of maps that hold them together; an image has less than 2^31 elements.
template <class T> SAN_INLINE T *row_of(const Map &map, int64 image, int pixel) {
  return static_cast<T *>(map.data) + image * map.image + pixel * static_cast<int>(map.column);
}

// The row of the table for a pair of pixels of one map; neighbour -1 is outside, in the last slot.
SAN_INLINE int64 table_row(const PairwiseArgs &args, int64 centre, int64 neighbour, int slot) {
  if (args.table_by_place) return neighbour < 0 ? args.height * args.width : neighbour;
  return (args.table_per_pixel ? centre : 0) * (args.footprint * args.footprint + 1) + slot;
}

struct Pixel {
  int64 image, rank;
  int y, x;
};
SAN_INLINE Pixel pixel_of(int64 rank, int64 height, int64 width) {
  const int64 row = rank / width;
  return {row / height, rank, static_cast<int>(row % height), static_cast<int>(rank % width)};
}

// sums[i][c] += rows a + offsets[i] of INNER values times b, of which this thread takes VECTORS
// runs of WIDTH columns, `apart` columns from one another; b's rows are `pitch` apart.
template <int INNER, int ROWS, int WIDTH, int VECTORS>
SAN_INLINE void product(const float *a, const int (&offsets)[ROWS], const float *b, int pitch,
                        int apart, float (&sums)[ROWS][WIDTH * VECTORS]) {
  constexpr int DEPTH = VECTORS == 1 ? 4 : 2;   // as far as registers go
#pragma unroll 1
  for (int k = 0; k < INNER; k += DEPTH) {
    Run<float, DEPTH> left[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++)
      left[i] = load<DEPTH>(a + offsets[i] + k);
#pragma unroll
    for (int kk = 0; kk < DEPTH; kk++)
#pragma unroll
      for (int v = 0; v < VECTORS; v++) {
        const Run<float, WIDTH> right = load<WIDTH>(b + (k + kk) * pitch + v * apart);
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
          for (int c = 0; c < WIDTH; c++)
            sums[i][v * WIDTH + c] += left[i].at[kk] * right.at[c];
      }
  }
}

}  // namespace san
