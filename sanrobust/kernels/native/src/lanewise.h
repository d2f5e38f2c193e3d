// Pixels side by side in the lanes of a vector: what the generic kernels are made of.
//
// A band of an image is laid out as planes, one per channel, with the footprint's margin around
// it. Position p = y * pitch + x of the band then finds its neighbour (dy, dx) at
// p + dy * pitch + dx of every plane, so that a vector of positions loads its neighbours at once.
// Positions with x >= width are padding: they are computed and thrown away.
#pragma once
#include <cmath>
#include <vector>

#include "api.h"
#include "parallel.h"
#include "simd.h"
#include "workspaces.h"

namespace san::lanewise {

template <class T> struct Pack {
  typedef T Vector __attribute__((vector_size(kLanes * 4)));
  static constexpr int lanes = kLanes * 4 / static_cast<int>(sizeof(T));
};
template <class T> using Vector = typename Pack<T>::Vector;
template <class T> constexpr int lanes_of = Pack<T>::lanes;

template <class T> SAN_INLINE Vector<T> get(const T *p) {
  Vector<T> v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class T> SAN_INLINE void put(T *p, Vector<T> v) { memcpy(p, &v, sizeof v); }

// v where gate > 0, 0 elsewhere; relu keeps NaN.
template <class T> SAN_INLINE Vector<T> where_positive(Vector<T> gate, Vector<T> v) {
  return gate > Vector<T>{} ? v : Vector<T>{};
}
template <class T> SAN_INLINE Vector<T> rectified(Vector<T> v) {
  return Vector<T>{} > v ? Vector<T>{} : v;
}

SAN_INLINE Vector<float> exponential(Vector<float> v) { return exp_nonpositive<kLanes>(v); }
SAN_INLINE Vector<double> exponential(Vector<double> v) {
  for (int lane = 0; lane < lanes_of<double>; lane++) v[lane] = std::exp(v[lane]);
  return v;
}

// out[column] = start[column] (or what out holds) + sum over i of in[i] * weight[i][column], a
// vector of pixels each.
enum class From { kZero, kOut };
template <class T, int N>
SAN_INLINE void product_block(T *out, const T *in, const T *weight, int inner, int columns,
                              From from) {
  constexpr int lanes = lanes_of<T>;
  Vector<T> sum[N];
  SAN_UNROLL for (int n = 0; n < N; n++)
    sum[n] = from == From::kZero ? Vector<T>{} : get(out + n * lanes);
  for (int i = 0; i < inner; i++) {
    const Vector<T> x = get(in + i * lanes);
    const T *row = weight + static_cast<int64_t>(i) * columns;
    SAN_UNROLL for (int n = 0; n < N; n++) sum[n] += x * row[n];
  }
  SAN_UNROLL for (int n = 0; n < N; n++) put(out + n * lanes, sum[n]);
}

template <class T>
inline void product(T *out, const T *in, const T *weight, int inner, int columns, From from) {
  constexpr int lanes = lanes_of<T>;
  int column = 0;
  const auto block = [&](auto size) {
    constexpr int n = decltype(size)::value;
    for (; column + n <= columns; column += n)
      product_block<T, n>(out + column * lanes, in, weight + column, inner, columns, from);
  };
  block(std::integral_constant<int, 8>());
  block(std::integral_constant<int, 4>());
  block(std::integral_constant<int, 2>());
  block(std::integral_constant<int, 1>());
}

// What both operators' arguments have in common.
struct Shape {
  template <class Args>
  explicit Shape(const Args &args)
      : images(args.images), height(args.height), width(args.width), relation(args.relation),
        groups(args.groups), channels(args.channels),
        footprint(args.footprint), neighbours(args.footprint * args.footprint),
        zeros(args.padding == kZeros), threads(std::max(args.threads, 1)) {
    if constexpr (std::is_same_v<Args, LocalArgs>) keys = args.keys;
    else keys = relation, hidden = args.hidden;
  }
  int all() const { return values() + channels; }
  int values() const { return relation + keys; }
  int shared() const { return channels / groups; }

  int64_t images, height, width;
  int relation, keys, hidden = 0, groups, channels, footprint, neighbours;
  bool zeros;
  int threads;
};

// One band of rows of a map, with its margin.
struct Grid {
  Grid(const Shape &shape, int64_t first, int64_t rows, int lanes);

  int64_t centre() const { return reach * pitch + reach; }
  int64_t tiles() const { return static_cast<int64_t>(pixel.size()) / lanes; }

  int lanes, reach;
  int64_t first, rows, width, pitch;
  int64_t plane;                       // values of one plane
  std::vector<int64_t> offset;         // by neighbour
  std::vector<int64_t> row_source;     // by row of a plane: the map's row, or -1 outside it
  std::vector<int64_t> column_source;
  std::vector<int64_t> pixel;          // by position: the map's pixel, or -1 for padding
};

inline Grid::Grid(const Shape &shape, int64_t first, int64_t rows, int lanes)
    : lanes(lanes), reach(shape.footprint / 2), first(first),
      rows(rows), width(shape.width), pitch(shape.width + 2 * reach),
      row_source(sources(first - reach, rows + 2 * reach, shape.height, shape.zeros)),
      column_source(sources(-reach, pitch, shape.width, shape.zeros)),
      pixel((rows * pitch + lanes - 1) / lanes * lanes, -1) {
  const int64_t last = static_cast<int64_t>(pixel.size()) + 2 * centre();
  plane = (last + 15) / 16 * 16;
  for (int neighbour = 0; neighbour < shape.neighbours; neighbour++)
    offset.push_back(neighbour / shape.footprint * pitch + neighbour % shape.footprint);
  for (int64_t y = 0; y < rows; y++)
    for (int64_t x = 0; x < width; x++) pixel[y * pitch + x] = (first + y) * width + x;
}

inline std::vector<Grid> bands_of(const Shape &shape, int lanes) {
  const int count = band_count(shape.height);
  std::vector<Grid> bands;
  for (int64_t band = 0; band < count; band++) {
    const int64_t first = shape.height * band / count;
    bands.emplace_back(shape, first, shape.height * (band + 1) / count - first, lanes);
  }
  return bands;
}

inline int64_t largest_plane(const std::vector<Grid> &bands) {
  int64_t largest = 0;
  for (const Grid &grid : bands) largest = std::max(largest, grid.plane);
  return largest;
}

// Lays out an image's rows [pixels][channels] as planes with their margin.
template <class T>
void spread(const T *image, int channels, const Grid &grid, T *planes) {
  const int64_t used = static_cast<int64_t>(grid.row_source.size()) * grid.pitch;
  for (size_t r = 0; r < grid.row_source.size(); r++) {
    const int64_t from = grid.row_source[r];
    const T *source = image + from * grid.width * channels;
    for (int c = 0; c < channels; c++) {
      T *to = planes + c * grid.plane + r * grid.pitch;
      for (int64_t x = 0; x < grid.pitch; x++) {
        const int64_t column = grid.column_source[x];
        to[x] = from < 0 || column < 0 ? T(0) : source[column * channels + c];
      }
    }
  }
  for (int c = 0; c < channels; c++)
    std::fill(planes + c * grid.plane + used, planes + (c + 1) * grid.plane, T(0));
}

// Adds the planes' row y, and the margins that mirror it, to an image's rows: undoes spread.
template <class T>
void gather(const T *planes, int channels, const Grid &grid, int64_t y, T *image) {
  T *to = image + y * grid.width * channels;
  for (size_t r = 0; r < grid.row_source.size(); r++) {
    if (grid.row_source[r] != y) continue;
    for (int c = 0; c < channels; c++) {
      const T *from = planes + c * grid.plane + r * grid.pitch;
      for (int64_t x = 0; x < grid.pitch; x++)
        if (grid.column_source[x] >= 0) to[grid.column_source[x] * channels + c] += from[x];
    }
  }
}

}  // namespace san::lanewise
