// The left operand of a product: rows of a channels-last map, a few to a tile.
//
// A tile is prepared (affine, ReLU, pooling) in chunks [inner / 16][height][16], so that a row is
// written by whole vectors and read at constant distances.
#pragma once
#include "api.h"
#include "parallel.h"
#include "pointwise.h"
#include "simd.h"

namespace san::tiles {

constexpr int kChunk = kSignBits;
constexpr int kHeight = kRowsWide;
using V = Vec<kLanes>;

// A whole cut into parts that differ by at most 1.
struct Parts {
  int64_t whole, parts;
  int64_t first(int64_t part) const { return whole * part / parts; }
  int size(int64_t part) const { return static_cast<int>(first(part + 1) - first(part)); }
  int64_t largest() const { return divide_up(whole, parts); }
};

// Floats from one row of the left operand, and of the product, to the next.
SAN_INLINE int64_t pitch_of(const GemmArgs &g) { return g.inner + g.beside; }
SAN_INLINE int64_t out_pitch_of(const GemmArgs &g) { return g.columns + g.beside; }

inline void copy_tile(const GemmArgs &g, int64_t first, int height, float *to) {
  for (int k = 0; k < g.inner; k += kChunk) {
    const float *from = g.a + first * pitch_of(g) + k;
    for (int row = 0; row < height; row++, from += pitch_of(g), to += kChunk) {
      SAN_UNROLL for (int lane = 0; lane < kChunk; lane += kLanes)
        store<kLanes>(to + lane, load_up_to<kLanes>(from + lane, g.inner - k - lane));
    }
  }
}

// Scale and shift of the vector of channels from `at` on, 0 beyond the last.
struct Affine {
  int64_t left;
  V scale, shift;
  SAN_INLINE Affine(const GemmArgs &g, int at)
      : left(g.inner - at),
        scale(load_up_to<kLanes>(g.in_scale + at, left)),
        shift(load_up_to<kLanes>(g.in_shift + at, left)) {}
  SAN_INLINE V of(const float *x) const { return load_up_to<kLanes>(x, left) * scale + shift; }
};

template <bool Signs>
void affine_tile(const GemmArgs &g, int64_t first, int height, float *to) {
  const int64_t words = divide_up(g.inner, kChunk);
  for (int k = 0; k < g.inner; k += kChunk, to += height * kChunk) {
    for (int lane = 0; lane < kChunk; lane += kLanes) {
      const Affine affine(g, k + lane);
      const float *from = g.a + first * pitch_of(g) + k + lane;
      uint16_t *word = Signs ? g.in_signs + first * words + k / kChunk : nullptr;
      for (int row = 0; row < height; row++, from += pitch_of(g)) {
        const V v = affine.of(from);
        store<kLanes>(to + row * kChunk + lane, relu<kLanes>(v));
        if (!Signs) continue;
        const uint32_t bits = positive_bits<kLanes>(v) << lane;
        *word = static_cast<uint16_t>(lane ? *word | bits : bits);
        word += words;
      }
    }
  }
}

// The 2x2 pixels that become `row`, line by line.
struct Quad {
  const float *pixel[4];
  void point_to(const GemmArgs &g, int64_t row) {
    const int64_t height = g.pool_height / 2, width = g.pool_width / 2;
    const int64_t image = row / (height * width), y = row / width % height, x = row % width;
    pixel[0] = g.a + ((image * g.pool_height + 2 * y) * g.pool_width + 2 * x) * g.inner;
    pixel[1] = pixel[0] + g.inner;
    pixel[2] = pixel[0] + g.pool_width * g.inner;
    pixel[3] = pixel[2] + g.inner;
  }
};

template <bool Codes>
void pooled_tile(const GemmArgs &g, int64_t first, int height, float *to) {
  Quad quads[kHeight];
  for (int row = 0; row < height; row++) quads[row].point_to(g, first + row);
  for (int k = 0; k < g.inner; k += kChunk, to += height * kChunk) {
    for (int lane = 0; lane < kChunk; lane += kLanes) {
      const int at = k + lane;
      const Affine affine(g, at);
      for (int row = 0; row < height; row++) {
        const Quad &quad = quads[row];
        Largest<kLanes> largest(affine.of(quad.pixel[0] + at));
        SAN_UNROLL for (int i = 1; i < 4; i++) largest.meet(affine.of(quad.pixel[i] + at), i);
        if (Codes) store_codes<kLanes>(g.pool_codes + (first + row) * g.inner + at,
                                       largest.codes(), affine.left);
        store<kLanes>(to + row * kChunk + lane, relu<kLanes>(largest.value));
      }
    }
  }
}

inline void pack_tile(const GemmArgs &g, int64_t first, int height, float *to) {
  if (!g.in_scale) copy_tile(g, first, height, to);
  else if (g.pool_height && g.pool_codes) pooled_tile<true>(g, first, height, to);
  else if (g.pool_height) pooled_tile<false>(g, first, height, to);
  else if (g.in_signs) affine_tile<true>(g, first, height, to);
  else affine_tile<false>(g, first, height, to);
}

// Tiles [begin, end) one after another.
inline void pack_tiles(const GemmArgs &g, const Parts &tiling, int64_t begin, int64_t end,
                       float *to) {
  const int64_t stride = round_up(g.inner, kChunk);
  for (int64_t tile = begin; tile < end; tile++) {
    const int height = tiling.size(tile);
    pack_tile(g, tiling.first(tile), height, to);
    to += height * stride;
  }
}

}  // namespace san::tiles
