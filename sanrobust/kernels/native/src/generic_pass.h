// Attention of any shape, in float and double, lanes = pixels: both passes by bands of rows.
//
// An operator is told apart by how it weighs neighbours: weigh() writes weight[neighbour][group]
// of a tile, unweigh() takes its gradient to those of query and key.
#pragma once
#include <vector>

#include "lanewise.h"
#include "learned.h"

namespace san::lanewise {

// One vector of positions of a band.
template <class T> struct Tile {
  const Grid &grid;
  int64_t index;
  int64_t first;    // the image's first pixel
  const T *planes;  // query, key, value
  T *grads;         // the same of the gradient; null in the forward pass

  int64_t base() const { return index * lanes_of<T>; }
  const int64_t *pixel() const { return grid.pixel.data() + base(); }
  const T *at(int channel, int64_t offset) const {
    return planes + channel * grid.plane + base() + offset;
  }
  void add(int channel, int64_t offset, Vector<T> v) const {
    T *to = grads + channel * grid.plane + base() + offset;
    put(to, get(to) + v);
  }
  // 1 in the lanes of pixels, 0 in those of padding.
  Vector<T> inside() const {
    Vector<T> one;
    for (int lane = 0; lane < lanes_of<T>; lane++) one[lane] = pixel()[lane] >= 0;
    return one;
  }
};

template <class T> const T *typed(const void *p) { return static_cast<const T *>(p); }
template <class T> T *typed(void *p) { return static_cast<T *>(p); }

template <class T> void rectify(T *values, int count) {
  for (int i = 0; i < count; i++)
    put(values + i * lanes_of<T>, rectified<T>(get(values + i * lanes_of<T>)));
}

template <class T> void mask(T *values, const T *gate, int count) {
  for (int i = 0; i < count * lanes_of<T>; i += lanes_of<T>)
    put(values + i, where_positive<T>(get(gate + i), get(values + i)));
}

// Softmax over the neighbours of each group.
template <class T> void normalise(const Shape &shape, T *weight) {
  const int step = shape.groups * lanes_of<T>, end = shape.neighbours * step;
  for (int first = 0; first < step; first += lanes_of<T>) {
    Vector<T> largest = get(weight + first), sum{};
    for (int i = first + step; i < end; i += step) {
      const Vector<T> v = get(weight + i);
      largest = largest > v ? largest : v;
    }
    for (int i = first; i < end; i += step) {
      const Vector<T> v = exponential(get(weight + i) - largest);
      put(weight + i, v);
      sum += v;
    }
    const Vector<T> share = T(1) / sum;
    for (int i = first; i < end; i += step) put(weight + i, get(weight + i) * share);
  }
}

// From the gradient of the softmax to that of its logits.
template <class T> void unnormalise(const Shape &shape, const T *weight, T *grad) {
  const int step = shape.groups * lanes_of<T>, end = shape.neighbours * step;
  for (int first = 0; first < step; first += lanes_of<T>) {
    Vector<T> mean{};
    for (int i = first; i < end; i += step) mean += get(weight + i) * get(grad + i);
    for (int i = first; i < end; i += step) put(grad + i, get(weight + i) * (get(grad + i) - mean));
  }
}

// Sums `N` channels that share a weight over the neighbours of a tile.
template <class T, int N>
SAN_INLINE void sum_block(const Tile<T> &tile, const Shape &shape, const T *weight, int channel,
                          T *out) {
  constexpr int lanes = lanes_of<T>;
  Vector<T> sum[N] = {};
  for (int j = 0; j < shape.neighbours; j++) {
    const Vector<T> share = get(weight + j * shape.groups * lanes);
    const T *value = tile.at(shape.values() + channel, tile.grid.offset[j]);
    SAN_UNROLL for (int n = 0; n < N; n++)
      sum[n] += share * get(value + n * shape.groups * tile.grid.plane);
  }
  SAN_UNROLL for (int n = 0; n < N; n++)
    put(out + (channel + n * shape.groups) * lanes, sum[n]);
}

template <class T>
void aggregate(const Tile<T> &tile, const Shape &shape, const T *weight, T *out) {
  for (int group = 0; group < shape.groups; group++) {
    const T *own = weight + group * lanes_of<T>;
    int n = 0;
    for (; n + 8 <= shape.shared(); n += 8)
      sum_block<T, 8>(tile, shape, own, group + n * shape.groups, out);
    for (; n + 2 <= shape.shared(); n += 2)
      sum_block<T, 2>(tile, shape, own, group + n * shape.groups, out);
    for (; n < shape.shared(); n++)
      sum_block<T, 1>(tile, shape, own, group + n * shape.groups, out);
  }
}

// The gradients of aggregate(): `grad` is that of its output, a vector per channel.
template <class T>
void unaggregate(const Tile<T> &tile, const Shape &shape, const T *grad, T *weight,
                 T *grad_weight) {
  constexpr int lanes = lanes_of<T>;
  const Vector<T> inside = tile.inside();
  for (int j = 0; j < shape.neighbours; j++) {
    const int64_t offset = tile.grid.offset[j];
    for (int group = 0; group < shape.groups; group++) {
      const int at = (j * shape.groups + group) * lanes;
      // Padding must add nothing to real neighbours, not even a NaN.
      const Vector<T> share = where_positive<T>(inside, get(weight + at));
      Vector<T> sum{};
      for (int channel = group; channel < shape.channels; channel += shape.groups) {
        const Vector<T> g = get(grad + channel * lanes);
        sum += g * get(tile.at(shape.values() + channel, offset));
        tile.add(shape.values() + channel, offset, g * share);
      }
      put(weight + at, share);
      put(grad_weight + at, where_positive<T>(inside, sum));
    }
  }
}

// Where the operator's result goes, and where its gradient comes from.
template <class T> struct Ends {
  template <class Args>
  explicit Ends(const Args &args)
      : scale(typed<T>(args.scale)), shift(typed<T>(args.shift)), out(typed<T>(args.out)), grad(typed<T>(args.grad)), out_is_kept(keeps_out<Args>) {
    if constexpr (!std::is_same_v<Args, LocalArgs>) y = typed<T>(args.y);
  }

  // Writes the rows of one image's pixels from a vector per channel.
  void write(const Tile<T> &tile, int channels, const T *sum) const {
    for (int lane = 0; lane < lanes_of<T>; lane++) {
      if (tile.pixel()[lane] < 0) continue;
      const int64_t at = (tile.first + tile.pixel()[lane]) * channels;
      for (int c = 0; c < channels; c++) {
        const T v = sum[c * lanes_of<T> + lane];
        if (y) y[at + c] = v;
        if (out) out[at + c] = scale ? relu_of(v * scale[c] + shift[c]) : v;
      }
    }
  }

  // Reads the gradient of y, a vector per channel; 0 in padding.
  void read(const Tile<T> &tile, int channels, T *into) const {
    std::fill(into, into + channels * lanes_of<T>, T(0));
    for (int lane = 0; lane < lanes_of<T>; lane++) {
      if (tile.pixel()[lane] < 0) continue;
      const int64_t at = (tile.first + tile.pixel()[lane]) * channels;
      for (int c = 0; c < channels; c++) {
        into[c * lanes_of<T> + lane] =
            !scale ? grad[at + c] : passes(at, c) ? grad[at + c] * scale[c] : T(0);
      }
    }
  }

  bool passes(int64_t at, int c) const {
    return out_is_kept ? out[at + c] > 0 : y[at + c] * scale[c] + shift[c] > 0;
  }

  static T relu_of(T v) { return T(0) > v ? T(0) : v; }

  const T *scale, *shift;
  T *y = nullptr, *out;
  const T *grad;
  const bool out_is_kept;
};

// Calls body(task, tile, memory of `values` values) for every tile of the first tasks, which are the
// bands of one image after another.
template <class T, class Args, class Body>
void each_tile(const Args &args, const Shape &shape, const std::vector<Grid> &bands, int64_t tasks,
               size_t values, const Body &body) {
  const int64_t pixels = shape.height * shape.width, count = bands.size();
  const size_t planes = shape.all() * largest_plane(bands);
  Workspaces<T> spaces(std::min<int64_t>(tasks, shape.threads), planes + values);
  parallel_for(tasks, shape.threads, [&](int64_t task) {
    const int64_t image = task / count, space = spaces.take();
    const Grid &grid = bands[task % count];
    T *plane = spaces.at(space);
    spread(typed<T>(args.qkv) + image * pixels * shape.all(), shape.all(), grid, plane);
    for (int64_t index = 0; index < grid.tiles(); index++)
      body(task, Tile<T>{grid, index, image * pixels, plane, nullptr}, plane + planes);
    spaces.give_back(space);
  });
}

// Whether a backward pass adds to the rows of gradients that it is given.
template <class Args> bool adds(const Args &) { return false; }
inline bool adds(const PatchwiseArgs &args) { return args.adds; }

// The gradient planes of every band of some images, folded into rows in one order.
template <class T>
void fold(const Shape &shape, const std::vector<Grid> &bands, const T *grads, size_t each,
          int64_t images, bool adds, T *grad_qkv) {
  const int64_t row = shape.width * shape.all();
  parallel_for(images * shape.height, shape.threads, [&](int64_t task) {
    const int64_t image = task / shape.height, y = task % shape.height;
    T *to = grad_qkv + image * shape.height * row;
    if (!adds) std::fill(to + y * row, to + (y + 1) * row, T(0));
    for (size_t band = 0; band < bands.size(); band++)
      gather(grads + (image * bands.size() + band) * each, shape.all(), bands[band], y, to);
  });
}

// Calls body(tile, memory, sums) for every tile of all images, which adds to the tile's gradients
// and to the sums over pairs, a vector each; then folds the gradients into rows.
template <class T, class Args, class Body>
void scatter(const Args &args, const Shape &shape, const std::vector<Grid> &bands, size_t values,
             std::vector<typename Learned<T>::Gradient> gradients, const Body &body) {
  const int64_t pixels = shape.height * shape.width, count = bands.size();
  const size_t planes = shape.all() * largest_plane(bands);
  // A few images at a time, so that the gradient planes stay small.
  const int64_t some = std::min<int64_t>(shape.images, (4 * shape.threads + count - 1) / count);
  T *grads = scratch<T>(1, some * count * planes);
  Learned<T> learned(std::move(gradients), some * count);
  const size_t sums = learned.size() * lanes_of<T>;
  Workspaces<T> spaces(std::min<int64_t>(some * count, shape.threads), planes + sums + values);
  for (int64_t first = 0; first < shape.images; first += some) {
    const int64_t images = std::min(some, shape.images - first);
    const T *qkv = typed<T>(args.qkv) + first * pixels * shape.all();
    parallel_for(images * count, shape.threads, [&](int64_t task) {
      const int64_t image = task / count, space = spaces.take();
      const Grid &grid = bands[task % count];
      T *plane = spaces.at(space), *sum = plane + planes, *grad_planes = grads + task * planes;
      spread(qkv + image * pixels * shape.all(), shape.all(), grid, plane);
      std::fill(grad_planes, grad_planes + shape.all() * grid.plane, T(0));
      std::fill(sum, sum + sums, T(0));
      for (int64_t index = 0; index < grid.tiles(); index++)
        body(Tile<T>{grid, index, (first + image) * pixels, plane, grad_planes}, sum + sums, sum);
      for (int64_t i = 0; i < learned.size(); i++)
        for (int lane = 0; lane < lanes_of<T>; lane++)
          learned.of(task)[i] += sum[i * lanes_of<T> + lane];
      spaces.give_back(space);
    });
    learned.add(images * count);
    fold(shape, bands, grads, planes, images, adds(args),
         typed<T>(args.grad_qkv) + first * pixels * shape.all());
  }
  learned.write();
}

// What all passes of an operator need.
template <class Operator, class Args> struct Call {
  using T = typename Operator::Element;

  explicit Call(const Args &args)
      : args(args), shape(args), bands(bands_of(shape, lanes_of<T>)), weighing(args, bands),
        tasks(shape.images * static_cast<int64_t>(bands.size())),
        weights(static_cast<size_t>(shape.neighbours) * shape.groups * lanes_of<T>),
        sums(static_cast<size_t>(shape.channels) * lanes_of<T>) {}

  // As the functions above; `values` of memory besides what the operator needs.
  template <class Body> void each_tile(int64_t tasks, size_t values, const Body &body) const {
    lanewise::each_tile<T>(args, shape, bands, tasks, values + weighing.scratch_values(false),
                           body);
  }
  template <class Body> void scatter(size_t values, const Body &body) const {
    lanewise::scatter<T>(args, shape, bands, values + weighing.scratch_values(true),
                         weighing.gradients(args), body);
  }

  const Args &args;
  const Shape shape;
  const std::vector<Grid> bands;
  const Operator weighing;
  const int64_t tasks;
  const size_t weights, sums;  // values of a tile's weights, and of what they sum to
};

template <class Operator, class Args> int forward(const Args &args) {
  using T = typename Operator::Element;
  const Call<Operator, Args> call(args);
  const Ends<T> ends(args);
  call.each_tile(call.tasks, call.weights + call.sums,
                 [&](int64_t, const Tile<T> &tile, T *weight) {
                   T *sum = weight + call.weights;
                   call.weighing.weigh(tile, weight, sum + call.sums);
                   aggregate(tile, call.shape, weight, sum);
                   ends.write(tile, call.shape.channels, sum);
                 });
  return kOk;
}

template <class Operator, class Args> int backward(const Args &args) {
  using T = typename Operator::Element;
  const Call<Operator, Args> call(args);
  const Ends<T> ends(args);
  call.scatter(2 * call.weights + call.sums, [&](const Tile<T> &tile, T *weight, T *learned) {
    T *grad_weight = weight + call.weights, *grad = grad_weight + call.weights;
    T *memory = grad + call.sums;
    call.weighing.weigh(tile, weight, memory);
    ends.read(tile, call.shape.channels, grad);
    unaggregate(tile, call.shape, grad, weight, grad_weight);
    call.weighing.unweigh(tile, weight, grad_weight, memory, learned);
  });
  return kOk;
}

// Adds the products of `rows` vectors with `columns` vectors to vectors of sums, row by row.
template <class T>
void add_products(T *sums, const T *left, int rows, const T *right, int columns) {
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < columns; c++, sums += lanes_of<T>)
      put(sums, get(sums) + get(left + r * lanes_of<T>) * get(right + c * lanes_of<T>));
}

}  // namespace san::lanewise
