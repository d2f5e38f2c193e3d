// The maximum behind a ReLU over each square of 2x2 pixels, and where it was.
#pragma once
#include <algorithm>
#include <cstdint>

#include "simd.h"

namespace san {

// The first of the largest of four values, and NaN before any number, as torch has it.
template <class T> class Winner {
 public:
  explicit SAN_INLINE Winner(T first) : most_(first), place_(0) {}
  SAN_INLINE void meet(T value, T place) {
    const bool more = (value > most_) | (value != value);
    most_ = more ? value : most_;
    place_ = more ? place : place_;
  }
  SAN_INLINE T rectified() const { return 0 > most_ ? T(0) : most_; }
  // Which of the four it was, 4: it was not positive.
  SAN_INLINE uint8_t code() const { return static_cast<uint8_t>(most_ > 0 ? place_ : T(4)); }

 private:
  T most_, place_;
};

// Calls body(i) for all i < count, by runs of a length that is known, the last of which overlaps
// the one before: the compiler's loops over a rest would take most of the time of narrow maps.
template <int Run, class Body> SAN_INLINE void each_square(int64_t count, const Body &body) {
  if constexpr (Run > 1)
    if (count < Run) return each_square<Run / 2>(count, body);
  for (int64_t first = 0; first < count; first += Run) {
    const int64_t from = std::min(first, count - Run);
    for (int i = 0; i < Run; i++) body(from + i);
  }
}

}  // namespace san
