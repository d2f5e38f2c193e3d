// Between pixels with their channels side by side in memory and vectors with one channel of
// kLanes pixels: kBlock channels at a time are turned in registers.
#pragma once
#include <utility>

#include "simd.h"

namespace san {

constexpr int kBlock = kLanes < 8 ? kLanes : 8;
using Pixels = Vec<kLanes>;  // one channel of kLanes pixels
using Lanes = std::make_integer_sequence<int, kLanes>;

template <int... From> SAN_INLINE Pixels shuffle(Pixels a, Pixels b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, From...);
#else
  return __builtin_shuffle(a, b, Ints<kLanes>{From...});
#endif
}

// Swaps the lanes of `a` whose number has the bit Step with those of `b` that lack it.
template <int Step, int... Lane>
SAN_INLINE void exchange(Pixels &a, Pixels &b, std::integer_sequence<int, Lane...>) {
  const Pixels first = shuffle<((Lane & Step) ? kLanes + (Lane ^ Step) : Lane)...>(a, b);
  b = shuffle<((Lane & Step) ? kLanes + Lane : (Lane ^ Step))...>(a, b);
  a = first;
}

template <int Step> SAN_INLINE void exchange_all(Pixels (&rows)[kBlock]) {
  SAN_UNROLL for (int i = 0; i < kBlock; i++)
    if (!(i & Step)) exchange<Step>(rows[i], rows[i | Step], Lanes{});
}

// Row q holds kBlock channels of pixel q, then of pixel q + kBlock where a vector has the room;
// afterwards row c holds channel c of all pixels. The same again turns it back.
SAN_INLINE void turn(Pixels (&rows)[kBlock]) {
  exchange_all<1>(rows);
  exchange_all<2>(rows);
  if constexpr (kBlock == 8) exchange_all<4>(rows);
}

SAN_INLINE Pixels load_pair(const float *first, const float *second) {
#if defined(__AVX512F__)
  const __m512d low = _mm512_castpd256_pd512(_mm256_castps_pd(_mm256_loadu_ps(first)));
  return (Pixels)_mm512_insertf64x4(low, _mm256_castps_pd(_mm256_loadu_ps(second)), 1);
#else
  (void)second;
  return load<kLanes>(first);
#endif
}

// Reads kBlock channels of `count` pixels that lie `stride` floats apart; lanes beyond are 0.
SAN_INLINE void read_block(const float *pixels, int64_t stride, int count,
                           Pixels (&rows)[kBlock]) {
  if (count >= kLanes) {
    SAN_UNROLL for (int q = 0; q < kBlock; q++)
      rows[q] = load_pair(pixels + q * stride, pixels + (q + kBlock) * stride);
    return;
  }
  static const float nothing[kBlock] = {};
  for (int q = 0; q < kBlock; q++)
    rows[q] = load_pair(q < count ? pixels + q * stride : nothing,
                        q + kBlock < count ? pixels + (q + kBlock) * stride : nothing);
}

// Writes what read_block reads; lanes beyond `count` are dropped.
SAN_INLINE void write_block(float *pixels, int64_t stride, int count,
                            const Pixels (&rows)[kBlock]) {
  constexpr int kParts = kLanes / kBlock;
  SAN_UNROLL for (int q = 0; q < kBlock; q++) {
    Vec<kBlock> parts[kParts];
    memcpy(&parts, &rows[q], sizeof parts);
    SAN_UNROLL for (int part = 0; part < kParts; part++)
      if (count >= kLanes || q + part * kBlock < count)
        store<kBlock>(pixels + (q + part * kBlock) * stride, parts[part]);
  }
}

}  // namespace san
