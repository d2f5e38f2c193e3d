// Register tiles of a matrix product whose left side is a few rows: the pairs of one pixel, or
// some pixels. With constant arguments everything below inlines to one straight loop.
#pragma once
#include <type_traits>
#include <utility>

#include "api.h"
#include "simd.h"

namespace san {

// Vectors this wide fit a row of `columns` floats (a power of two, or a multiple of kLanes).
constexpr int lanes_for(int columns) { return columns < kLanes ? columns : kLanes; }

// Rows of the largest tile for a product with so many columns.
constexpr int rows_for(int columns) { return columns <= kLanes ? kRowsNarrow : kRowsWide; }

// sum[m][v] = init(m, v) + sum over k of a[m * lda + k] * b[k * ldb + v * Lanes ...], the sum in
// the order of k; then epilogue(m, v, sum[m][v]), row by row.
template <int Rows, int Vectors, int Lanes, class Init, class Epilogue>
SAN_INLINE void tile(const float *__restrict a, int64_t lda, const float *__restrict b,
                     int64_t ldb, int inner, const Init &init, const Epilogue &epilogue) {
  Vec<Lanes> sum[Rows][Vectors];
  SAN_UNROLL for (int m = 0; m < Rows; m++)
    SAN_UNROLL for (int v = 0; v < Vectors; v++) sum[m][v] = init(m, v);
  for (int k = 0; k < inner; k++) {
    Vec<Lanes> column[Vectors];
    SAN_UNROLL for (int v = 0; v < Vectors; v++) column[v] = load<Lanes>(b + k * ldb + v * Lanes);
    SAN_UNROLL for (int m = 0; m < Rows; m++) {
      const Vec<Lanes> factor = splat<Lanes>(a[m * lda + k]);
      SAN_UNROLL for (int v = 0; v < Vectors; v++) sum[m][v] += factor * column[v];
    }
  }
  SAN_UNROLL for (int m = 0; m < Rows; m++)
    SAN_UNROLL for (int v = 0; v < Vectors; v++) epilogue(m, v, sum[m][v]);
}

// The same for Columns columns, in blocks of at most two vectors: init(m, c) gives and
// epilogue(m, c, sum) takes the columns from c on.
template <int Rows, int Columns, class Init, class Epilogue>
SAN_INLINE void product(const float *a, int64_t lda, const float *b, int64_t ldb, int inner,
                        const Init &init, const Epilogue &epilogue) {
  constexpr int lanes = lanes_for(Columns), total = Columns / lanes;
  constexpr int vectors = total % 2 == 0 ? 2 : 1;
  static_assert(Columns % lanes == 0, "columns fill whole vectors");
  for (int c = 0; c < Columns; c += vectors * lanes)
    tile<Rows, vectors, lanes>(
        a, lda, b + c, ldb, inner, [&](int m, int v) { return init(m, c + v * lanes); },
        [&](int m, int v, Vec<lanes> sum) { epilogue(m, c + v * lanes, sum); });
}

// A product's usual start, sum = 0.
template <int Columns> struct Nothing {
  SAN_INLINE Vec<lanes_for(Columns)> operator()(int, int) const {
    return Vec<lanes_for(Columns)>{};
  }
};

template <int Rows, class Body> __attribute__((noinline)) void run_with_rows(const Body &body) {
  body(std::integral_constant<int, Rows>{});
}

template <class Body, int... Less>
inline void with_rows(int rows, const Body &body, std::integer_sequence<int, Less...>) {
  using Case = void (*)(const Body &);
  static constexpr Case cases[] = {run_with_rows<Less + 1, Body>...};
  cases[rows - 1](body);
}

// Calls body(integral_constant of rows), 1 <= rows <= Max.
template <int Max, class Body> SAN_INLINE void with_rows(int rows, const Body &body) {
  with_rows(rows, body, std::make_integer_sequence<int, Max>{});
}

// Cuts `rows` rows into as few blocks of at most Max as possible, evenly, so that no small rest
// runs at a small tile's speed: body(first row, integral_constant of the block's rows).
template <int Max, class Body> SAN_INLINE void each_block(int rows, const Body &body) {
  const int blocks = (rows + Max - 1) / Max;
  for (int block = 0, first = 0; block < blocks; block++) {
    const int count = (rows - first + blocks - block - 1) / (blocks - block);
    with_rows<Max>(count, [&](auto constant) { body(first, constant); });
    first += count;
  }
}

// Calls body(integral_constant of the width) where there are kernels for it; a Status.
template <class Body> int with_width(int width, const Body &body) {
  switch (width) {
    case 16: body(std::integral_constant<int, 16>()); return kOk;
    case 32: body(std::integral_constant<int, 32>()); return kOk;
    case 64: body(std::integral_constant<int, 64>()); return kOk;
    case 128: body(std::integral_constant<int, 128>()); return kOk;
    default: return kUnsupported;
  }
}

}  // namespace san
