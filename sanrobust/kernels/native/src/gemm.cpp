// Products of channels-last maps with weights, fused with what stands before and after them.
//
// The weights lie in panels of two vectors of columns, [inner][2 * kLanes] each. One kernel
// multiplies a tile of the left operand with a panel; a sum is made of its terms in the same order
// in whatever tile it falls.
#include <utility>

#include "gemm_tiles.h"

namespace san {
namespace {

using namespace tiles;

constexpr int kPanel = 2 * kLanes;
constexpr int kLineFloats = 16;         // of a cache line
constexpr int kSegment = 128;           // terms added in one chain; longer sums are sums of these
constexpr int64_t kBlockFloats = 1 << 16;   // of the tiles that meet a panel while it is in L2
constexpr int kMaxBlockTiles = 8;

// ---- The product and what comes after it

// Memory that will be read soon: a few lines are asked for at every step of the product, so that
// they arrive in the cache while it computes.
struct Ahead {
  const float *at, *end;
  int lines_per_chunk;
  SAN_INLINE void step() {
    for (int i = 0; i < lines_per_chunk && at < end; i++, at += kLineFloats)
      __builtin_prefetch(at, 0, 2);
  }
};

// Where one tile meets one panel.
struct Meeting {
  const GemmArgs &g;
  const float *tile, *panel;
  int64_t row;
  int column, width;    // the panel's first column, and how many of its columns exist
  const float *next;    // where the next meeting will write
  Ahead &ahead;
};

SAN_INLINE uint32_t sign_bits(const GemmArgs &g, int64_t row, int column) {
  const int64_t words = divide_up(g.columns, kChunk);
  return static_cast<uint32_t>(g.out_signs[row * words + column / kChunk]) >> (column % kChunk);
}

template <bool Masked, bool Add, int Rows, int Vecs>
SAN_INLINE void finish(const Meeting &m, V (&sum)[Rows][Vecs]) {
  const GemmArgs &g = m.g;
  const bool whole = m.width == Vecs * kLanes;
  SAN_UNROLL for (int v = 0; v < Vecs; v++) {
    const int column = m.column + v * kLanes;
    const int64_t count = whole ? kLanes : m.width - v * kLanes;
    const V scale = Masked ? load_up_to<kLanes>(g.out_scale + column, count) : V{};
    float *to = g.out + m.row * out_pitch_of(g) + column;
    SAN_UNROLL for (int r = 0; r < Rows; r++, to += out_pitch_of(g)) {
      V value = sum[r][v];
      if (Masked) value = keep_bits<kLanes>(value * scale, sign_bits(g, m.row + r, column));
      if (Add) value += load_up_to<kLanes>(to, count);
      store_up_to<kLanes>(to, value, count);
    }
  }
}

template <int Rows, int Vecs>
SAN_INLINE void add_products(const float *a, const float *b, int count, V (&sum)[Rows][Vecs]) {
  for (int k = 0; k < count; k++, b += Vecs * kLanes) {
    V weight[Vecs];
    SAN_UNROLL for (int v = 0; v < Vecs; v++) weight[v] = load<kLanes>(b + v * kLanes);
    SAN_UNROLL for (int r = 0; r < Rows; r++) {
      SAN_UNROLL for (int v = 0; v < Vecs; v++) sum[r][v] += weight[v] * a[r * kChunk + k];
    }
  }
}

// Moves the sums of a segment to memory and starts the next, which bounds the rounding error of
// long sums.
template <int Rows, int Vecs>
SAN_INLINE void keep(V (&sum)[Rows][Vecs], V (&kept)[Rows][Vecs], bool first) {
  SAN_UNROLL for (int r = 0; r < Rows; r++) {
    SAN_UNROLL for (int v = 0; v < Vecs; v++) {
      kept[r][v] = first ? sum[r][v] : kept[r][v] + sum[r][v];
      sum[r][v] = V{};
    }
  }
}

template <int Rows, int Vecs> void multiply(const Meeting &m) {
  const GemmArgs &g = m.g;
  V sum[Rows][Vecs];
  SAN_UNROLL for (int v = 0; v < Vecs; v++) {
    const int column = m.column + v * kLanes;
    const V start = g.bias ? load_up_to<kLanes>(g.bias + column, g.columns - column) : V{};
    SAN_UNROLL for (int r = 0; r < Rows; r++) sum[r][v] = start;
  }
  V kept[Rows][Vecs];
  const float *a = m.tile, *b = m.panel, *next = m.next;
  const int rows_per_chunk = Rows / std::max(1, g.inner / kChunk) + 1;
  int k = 0, called = 0;
  for (; k + kChunk <= g.inner; k += kChunk, a += Rows * kChunk, b += kChunk * Vecs * kLanes) {
    if (k > 0 && k % kSegment == 0) keep(sum, kept, k == kSegment);
    m.ahead.step();
    for (int i = 0; i < rows_per_chunk && called < Rows; i++, called++, next += out_pitch_of(g))
      for (int v = 0; v < Vecs * kLanes; v += kLineFloats) __builtin_prefetch(next + v, 1, 2);
    add_products<Rows, Vecs>(a, b, kChunk, sum);
  }
  add_products<Rows, Vecs>(a, b, g.inner - k, sum);
  if (k > kSegment) keep(kept, sum, false);
  if (g.out_signs && g.accumulate) finish<true, true>(m, sum);
  else if (g.out_signs) finish<true, false>(m, sum);
  else if (g.accumulate) finish<false, true>(m, sum);
  else finish<false, false>(m, sum);
}

using Kernel = void (*)(const Meeting &);
template <int Vecs, int... Less> constexpr Kernel kernel_of(int rows,
                                                            std::integer_sequence<int, Less...>) {
  constexpr Kernel kernels[] = {multiply<Less + 1, Vecs>...};
  return kernels[rows - 1];
}
Kernel kernel_for(int rows, int width) {
  constexpr std::make_integer_sequence<int, kHeight> heights{};
  return width > kLanes ? kernel_of<2>(rows, heights) : kernel_of<1>(rows, heights);
}

// The left operand of tiles [begin, end), to be asked for while `tiles` tiles meet all panels.
Ahead ahead_of(const GemmArgs &g, const Parts &tiling, int64_t begin, int64_t end,
               int64_t tiles) {
  const int64_t pixels = g.pool_height ? 4 : 1;   // of the left operand per row
  const float *first = g.a + tiling.first(begin) * pixels * pitch_of(g);
  const float *last = g.a + tiling.first(end) * pixels * pitch_of(g);
  const int64_t steps = tiles * divide_up(g.columns, kPanel) * divide_up(g.inner, kChunk);
  const int64_t lines = divide_up(last - first, kLineFloats);
  return {first, last, static_cast<int>(divide_up(lines, std::max<int64_t>(1, steps)))};
}

// Tiles [begin, end), packed one after another, times the panels [first, last).
void multiply_tiles(const GemmArgs &g, const Parts &tiling, int64_t begin, int64_t end,
                    const float *packed, int64_t first, int64_t last, Ahead ahead) {
  const int64_t stride = round_up(g.inner, kChunk), top = tiling.first(begin);
  for (int64_t panel = first; panel < last; panel++) {
    const int column = static_cast<int>(panel * kPanel);
    const int width = std::min(kPanel, g.columns - column);
    const float *weights = g.packed + static_cast<int64_t>(column) * g.inner;
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t row = tiling.first(tile);
      const int64_t after = tile + 1 < end ? tiling.first(tile + 1) * out_pitch_of(g) + column
                                           : top * out_pitch_of(g) + column + width;
      kernel_for(tiling.size(tile), width)(
          {g, packed + (row - top) * stride, weights, row, column, width, g.out + after, ahead});
    }
  }
}

// ---- How the work is cut. Nothing here changes a number.

struct Plan {
  Parts tiling;           // rows into tiles: equal heights, so that none is a small remainder
  int64_t panels, stride; // stride: floats of a packed row
  int64_t block;          // tiles that meet a panel while both are in L2
  explicit Plan(const GemmArgs &g)
      : tiling{g.rows, divide_up(g.rows, kHeight)},
        panels(divide_up(g.columns, kPanel)),
        stride(round_up(g.inner, kChunk)),
        block(std::clamp<int64_t>(kBlockFloats / (kHeight * stride), 1, kMaxBlockTiles)) {}
};

bool cuts_evenly(int64_t tiles, int threads) {
  return divide_up(tiles, threads) * threads * 32 <= tiles * 33;
}

// Each thread prepares a block of rows in its own buffer and multiplies it at once; it takes the
// next block before, and so knows what it will read.
void by_rows(const GemmArgs &g, const Plan &plan, int threads) {
  const int64_t floats = plan.block * kHeight * plan.stride;
  float *const buffers = scratch<float>(0, static_cast<size_t>(threads * floats));
  Shares shares(plan.tiling.parts, threads);
  parallel_team(threads, [&](int worker) {
    float *const packed = buffers + worker * floats;
    Range next = shares.take(worker, plan.block);
    while (const Range now = next) {
      next = shares.take(worker, plan.block);
      pack_tiles(g, plan.tiling, now.begin, now.end, packed);
      multiply_tiles(g, plan.tiling, now.begin, now.end, packed, 0, plan.panels,
                     ahead_of(g, plan.tiling, next.begin, next.end, now.end - now.begin));
    }
  });
}

// Blocks of tiles and ranges of panels, chosen for the shortest time of the busiest thread.
struct Grid {
  Parts blocks, ranges;
  Grid(const Plan &plan, int threads) : blocks{plan.tiling.parts, 1}, ranges{plan.panels, 1} {
    double best = 1e300;
    for (int64_t block = plan.block; block >= 1; block--) {
      const Parts rows{plan.tiling.parts, divide_up(plan.tiling.parts, block)};
      for (int64_t count = 1; count <= std::min<int64_t>(plan.panels, 8 * threads); count++) {
        const Parts columns{plan.panels, count};
        const double time = busiest(rows, columns, threads);
        if (time < best) best = time, blocks = rows, ranges = columns;
      }
    }
  }
  // In products of a tile and a panel. Starting a task costs some, and so does a panel that few
  // tiles meet, for it comes from further away.
  static double busiest(const Parts &rows, const Parts &columns, int threads) {
    const double rounds = static_cast<double>(divide_up(rows.parts * columns.parts, threads));
    const double tiles = static_cast<double>(rows.largest());
    const double panels = static_cast<double>(columns.largest());
    return rounds * (tiles * panels + 0.15 * panels + 0.25);
  }
};

// Few rows: prepare all of them first, then cut the product along the columns too.
void by_rows_and_columns(const GemmArgs &g, const Plan &plan, int threads) {
  const Grid grid(plan, threads);
  float *const packed = scratch<float>(0, static_cast<size_t>(g.rows * plan.stride));
  const auto place = [&](int64_t tile) { return packed + plan.tiling.first(tile) * plan.stride; };
  parallel_for(plan.tiling.parts, threads,
               [&](int64_t tile) { pack_tiles(g, plan.tiling, tile, tile + 1, place(tile)); });
  parallel_for(grid.blocks.parts * grid.ranges.parts, threads, [&](int64_t task) {
    const int64_t range = task / grid.blocks.parts, block = task % grid.blocks.parts;
    const int64_t begin = grid.blocks.first(block), end = grid.blocks.first(block + 1);
    multiply_tiles(g, plan.tiling, begin, end, place(begin), grid.ranges.first(range),
                   grid.ranges.first(range + 1), {nullptr, nullptr, 0});
  });
}

bool takes(const GemmArgs &g) {
  const bool prologue = g.in_scale && g.in_shift;
  if (!prologue && (g.in_scale || g.in_signs || g.pool_height || g.pool_codes)) return false;
  if (g.pool_height && (g.in_signs || g.beside || g.pool_height < 2 || g.pool_width < 2)) return false;
  return !g.out_signs || g.out_scale;
}

int gemm(const GemmArgs &g) {
  if (!takes(g)) return kUnsupported;
  if (g.rows <= 0 || g.columns <= 0) return kOk;
  const Plan plan(g);
  const int threads = std::max(1, g.threads);
  if (cuts_evenly(plan.tiling.parts, threads)) by_rows(g, plan, threads);
  else by_rows_and_columns(g, plan, threads);
  return kOk;
}

void pack(const PackArgs &p) {
  float *to = p.packed;
  for (int column = 0; column < p.columns; column += kPanel) {
    const int width = std::min(kPanel, p.columns - column);
    for (int k = 0; k < p.inner; k++) {
      const float *from = p.b + k * p.row_stride + column * p.column_stride;
      for (int64_t i = 0; i < round_up(width, kLanes); i++)
        *to++ = i < width ? from[i * p.column_stride] : 0.0f;
    }
  }
}

}  // namespace
}  // namespace san

extern "C" int64_t sanrobust_packed_size(int32_t inner, int32_t columns) {
  return inner * san::round_up(columns, san::kLanes);
}

extern "C" int sanrobust_pack(const PackArgs *p) {
  san::pack(*p);
  return kOk;
}

extern "C" int sanrobust_gemm(const GemmArgs *g) {
  try {
    return san::gemm(*g);
  } catch (const std::bad_alloc &) {
    return kOutOfMemory;
  }
}
