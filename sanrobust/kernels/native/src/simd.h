// Vectors of floats by the compiler's vector extensions, as wide as the build allows.
// Every function keeps NaN a NaN: a model that overflows must not look finite.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#define SAN_INLINE inline __attribute__((always_inline))
#define SAN_UNROLL _Pragma("GCC unroll 64")

namespace san {

// Rows of a register tile, one and two vectors wide: as many as leave registers for operands.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRowsNarrow = 25, kRowsWide = 14;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRowsNarrow = 12, kRowsWide = 6;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRowsNarrow = 24, kRowsWide = 12;
#else
constexpr int kLanes = 4, kRowsNarrow = 12, kRowsWide = 6;
#endif

template <int L> struct Types {
  typedef float Float __attribute__((vector_size(L * 4)));
  typedef int32_t Int __attribute__((vector_size(L * 4)));
};
template <int L> using Vec = typename Types<L>::Float;
template <int L> using Ints = typename Types<L>::Int;

template <int L> SAN_INLINE Vec<L> load(const float *p) { Vec<L> v; memcpy(&v, p, sizeof v); return v; }
template <int L> SAN_INLINE void store(float *p, Vec<L> v) { memcpy(p, &v, sizeof v); }
// A store past the caches where the hardware has one; p is aligned to the vector. Other threads
// see it for certain after end_streams.
template <int L> SAN_INLINE void stream(float *p, Vec<L> v) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return _mm512_stream_ps(p, (__m512)v);
#endif
#if defined(__AVX__)
  if constexpr (L == 8) return _mm256_stream_ps(p, (__m256)v);
#endif
  store<L>(p, v);
}
SAN_INLINE void end_streams() {
#if defined(__AVX__)
  _mm_sfence();
#endif
}
// x - 0 is x, so that this is one load and no addition.
template <int L> SAN_INLINE Vec<L> splat(float x) { return x - Vec<L>{}; }

// Only the first `count` lanes are read or written; the others are 0.
template <int L> SAN_INLINE Vec<L> load_some(const float *p, int count) {
#if defined(__AVX512F__)
  if constexpr (L == 16)
    return (Vec<L>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#endif
  Vec<L> v{};
  memcpy(&v, p, static_cast<size_t>(count) * 4);
  return v;
}
template <int L> SAN_INLINE void store_some(float *p, Vec<L> v, int count) {
#if defined(__AVX512F__)
  if constexpr (L == 16) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
    return;
  }
#endif
  memcpy(p, &v, static_cast<size_t>(count) * 4);
}

// As load_some and store_some for any count: whole above the lanes, nothing below 1.
template <int L> SAN_INLINE Vec<L> load_up_to(const float *p, int64_t count) {
  if (count >= L) return load<L>(p);
  return count > 0 ? load_some<L>(p, static_cast<int>(count)) : Vec<L>{};
}
template <int L> SAN_INLINE void store_up_to(float *p, Vec<L> v, int64_t count) {
  if (count >= L) return store<L>(p, v);
  if (count > 0) store_some<L>(p, v, static_cast<int>(count));
}

// The L / 2 floats at p in both halves; and the lower half of v plus its upper half.
template <int L> SAN_INLINE Vec<L> load_twice(const float *p) {
#if defined(__AVX512DQ__)
  if constexpr (L == 16) return (Vec<L>)_mm512_broadcast_f32x8(_mm256_loadu_ps(p));
#endif
  Vec<L> v;
  memcpy(&v, p, sizeof v / 2);
  memcpy(reinterpret_cast<char *>(&v) + sizeof v / 2, p, sizeof v / 2);
  return v;
}
template <int L> SAN_INLINE Vec<L / 2> halves_sum(Vec<L> v) {
#if defined(__AVX512DQ__)
  if constexpr (L == 16)
    return (Vec<L / 2>)_mm256_add_ps(_mm512_castps512_ps256((__m512)v),
                                     _mm512_extractf32x8_ps((__m512)v, 1));
#endif
  Vec<L / 2> low, high;
  memcpy(&low, &v, sizeof low);
  memcpy(&high, reinterpret_cast<const char *>(&v) + sizeof low, sizeof high);
  return low + high;
}

// The sum of all lanes, halved again and again.
template <int L> SAN_INLINE float lanes_sum(Vec<L> v) {
  if constexpr (L > 2) return lanes_sum<L / 2>(halves_sum<L>(v));
  else return v[0] + v[1];
}

// The larger of floor and v; NaN when v is (the hardware returns its second operand then).
template <int L> SAN_INLINE Vec<L> at_least(Vec<L> floor, Vec<L> v) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return (Vec<L>)_mm512_max_ps((__m512)floor, (__m512)v);
#endif
#if defined(__AVX__)
  if constexpr (L == 8) return (Vec<L>)_mm256_max_ps((__m256)floor, (__m256)v);
#endif
  return floor > v ? floor : v;
}
template <int L> SAN_INLINE Vec<L> relu(Vec<L> v) { return at_least<L>(Vec<L>{}, v); }

// Bit l is set where v[l] > 0.
template <int L> SAN_INLINE uint32_t positive_bits(Vec<L> v) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_GT_OQ);
#endif
#if defined(__AVX__)
  if constexpr (L == 8)
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_setzero_ps(), _CMP_GT_OQ)));
#endif
  uint32_t bits = 0;
  for (int l = 0; l < L; l++) bits |= static_cast<uint32_t>(v[l] > 0) << l;
  return bits;
}

// v where the bit is set, 0 elsewhere.
template <int L> SAN_INLINE Vec<L> keep_bits(Vec<L> v, uint32_t bits) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return (Vec<L>)_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), (__m512)v);
#endif
  Ints<L> lane;
  SAN_UNROLL for (int l = 0; l < L; l++) lane[l] = 1 << l;
  const Ints<L> set = ((Ints<L>{} + static_cast<int>(bits)) & lane) == lane;
  return (Vec<L>)((Ints<L>)v & set);
}

// v where gate > 0, 0 elsewhere.
template <int L> SAN_INLINE Vec<L> keep_positive(Vec<L> v, Vec<L> gate) {
#if defined(__AVX512F__)
  if constexpr (L == 16)
    return (Vec<L>)_mm512_maskz_mov_ps(
        _mm512_cmp_ps_mask((__m512)gate, _mm512_setzero_ps(), _CMP_GT_OQ), (__m512)v);
#endif
  return (Vec<L>)((Ints<L>)v & (gate > Vec<L>{}));
}

// exp(v) for v <= 0 to about 2 units in the last place; below -87 it stays at exp(-87).
// Range reduction by multiples of log 2, then the polynomial of Cephes' expf.
template <int L> SAN_INLINE Vec<L> exp_nonpositive(Vec<L> v) {
  const Vec<L> x = at_least<L>(splat<L>(-87.0f), v);
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec<L> shifted = x * 1.44269504088896341f + magic;
  const Vec<L> whole = shifted - magic;
  const Vec<L> part = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vec<L> p = splat<L>(1.9875691500e-4f);
  p = p * part + 1.3981999507e-3f;
  p = p * part + 8.3334519073e-3f;
  p = p * part + 4.1665795894e-2f;
  p = p * part + 1.6666665459e-1f;
  p = p * part + 5.0000001201e-1f;
  p = p * (part * part) + part + 1.0f;
#if defined(__AVX512F__)
  if constexpr (L == 16) return (Vec<L>)_mm512_scalef_ps((__m512)p, (__m512)whole);
#endif
  const Ints<L> power = ((Ints<L>)shifted - (Ints<L>)splat<L>(magic)) << 23;
  const Vec<L> result = (Vec<L>)((Ints<L>)p + power);
  return v == v ? result : v;
}

}  // namespace san
