// What the products and the glue do to single values: affine, signs, 2x2 pooling, winner codes.
#pragma once
#include "simd.h"

namespace san {

constexpr int kSignBits = 16;          // channels that share a word of signs
constexpr uint8_t kNonePositive = 4;   // the winner's code where no gradient passes

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// x * scale + shift of the channels from `at` on, 0 in lanes beyond the last of them.
template <int L>
SAN_INLINE Vec<L> affine(const float *x, const float *scale, const float *shift, int at,
                         int channels) {
  const int64_t left = channels - at;
  return load_up_to<L>(x + at, left) * load_up_to<L>(scale + at, left) +
         load_up_to<L>(shift + at, left);
}

template <int L> SAN_INLINE Ints<L> load_codes(const uint8_t *from, int64_t count) {
  typedef uint8_t Bytes __attribute__((vector_size(L)));
  Bytes bytes{};
  if (count >= L) memcpy(&bytes, from, L);
  else if (count > 0) memcpy(&bytes, from, static_cast<size_t>(count));
  return __builtin_convertvector(bytes, Ints<L>);
}

template <int L> SAN_INLINE void store_codes(uint8_t *to, Ints<L> codes, int64_t count) {
  typedef uint8_t Bytes __attribute__((vector_size(L)));
  const Bytes bytes = __builtin_convertvector(codes, Bytes);
  if (count >= L) memcpy(to, &bytes, L);
  else if (count > 0) memcpy(to, &bytes, static_cast<size_t>(count));
}

// v in the lanes whose code is `winner`, 0 elsewhere.
template <int L> SAN_INLINE Vec<L> keep_winner(Vec<L> v, Ints<L> codes, int winner) {
  return (Vec<L>)((Ints<L>)v & (codes == Ints<L>{} + winner));
}

// The largest of a few pixels, lane by lane, and which it was.
template <int L> struct Largest {
  Vec<L> value;
  Ints<L> winner{};

  explicit SAN_INLINE Largest(Vec<L> first) : value(first) {}

  // Equal values leave the first as winner; NaN wins over everything, as in torch.
  SAN_INLINE void meet(Vec<L> other, int index) {
    const Ints<L> wins = (other > value) | (other != other);
    value = wins ? other : value;
    winner = wins ? Ints<L>{} + index : winner;
  }

  SAN_INLINE Ints<L> codes() const {
    return value > Vec<L>{} ? winner : Ints<L>{} + int{kNonePositive};
  }
};

}  // namespace san
