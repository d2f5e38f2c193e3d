// Any shape, in float and double, lanes = pixels: forward and backward passes by bands of rows.
#include "generic.h"

#include "lanewise.h"

namespace san {
namespace {

using namespace lanewise;

// One vector of positions of a band.
template <class T> struct Tile {
  const Grid &grid;
  int64_t index;
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

// Which rows of the table are not those of the neighbour's nominal displacement, by tile and
// neighbour: reflected neighbours, those outside the map, and with a table per pixel all.
class Displacements {
 public:
  struct Entry {
    int lane;
    int64_t row;
  };

  Displacements(const Shape &shape, const Grid &grid, bool per_pixel)
      : shape_(shape), grid_(grid), per_pixel_(per_pixel),
        starts_(grid.tiles() * shape.neighbours + 1) {
    visit([&](int64_t slot, Entry) { starts_[slot + 1]++; });
    for (size_t slot = 1; slot < starts_.size(); slot++) starts_[slot] += starts_[slot - 1];
    entries_.resize(starts_.back());
    std::vector<int64_t> next(starts_);
    visit([&](int64_t slot, Entry entry) { entries_[next[slot]++] = entry; });
  }

  template <class Body> void each(int64_t tile, int neighbour, const Body &body) const {
    const int64_t slot = tile * shape_.neighbours + neighbour;
    for (int64_t i = starts_[slot]; i < starts_[slot + 1]; i++) body(entries_[i]);
  }

 private:
  template <class Body> void visit(const Body &body) const {
    for (int neighbour = 0; neighbour < shape_.neighbours; neighbour++)
      for (int64_t y = 0; y < grid_.rows; y++) {
        const int dy = neighbour / shape_.footprint;
        const int64_t down = step(grid_.row_source[y + dy], grid_.first + y);
        const bool plain = down == dy && !per_pixel_;
        for (int64_t x = 0; x < grid_.width; x++) {
          if (plain && x == grid_.reach) x = std::max(x, grid_.width - grid_.reach);
          if (x < grid_.width) visit_pixel(neighbour, y, x, down, body);
        }
      }
  }

  template <class Body>
  void visit_pixel(int neighbour, int64_t y, int64_t x, int64_t down, const Body &body) const {
    const int dx = neighbour % shape_.footprint;
    const int64_t across = step(grid_.column_source[x + dx], x);
    const int64_t row = down < 0 || across < 0 ? shape_.neighbours
                                               : down * shape_.footprint + across;
    if (row == neighbour && !per_pixel_) return;
    const int64_t position = y * grid_.pitch + x;
    const int64_t table = per_pixel_ ? grid_.pixel[position] * (shape_.neighbours + 1) : 0;
    body(position / grid_.lanes * shape_.neighbours + neighbour,
         Entry{static_cast<int>(position % grid_.lanes), table + row});
  }

  int64_t step(int64_t source, int64_t own) const {
    return source < 0 ? -1 : source - own + grid_.reach;
  }

  const Shape &shape_;
  const Grid &grid_;
  bool per_pixel_;
  std::vector<int64_t> starts_;
  std::vector<Entry> entries_;
};

// An operator is told apart by how it weighs neighbours: weigh() writes weight[neighbour][group]
// of a tile, unweigh() takes its gradient to those of query and key.
template <class T> class Pairwise {
 public:
  using Element = T;
  static constexpr int lanes = lanes_of<T>;

  Pairwise(const PairwiseArgs &args, const std::vector<Grid> &bands)
      : shape_(args), w1_(typed<T>(args.w1)), w1t_(typed<T>(args.w1t)), w2_(typed<T>(args.w2)),
        w2t_(typed<T>(args.w2t)), table_(typed<T>(args.table)), bands_(bands) {
    for (const Grid &grid : bands_)
      displacements_.emplace_back(shape_, grid, args.table_per_pixel != 0);
  }

  size_t scratch_values(bool backward) const {
    const int kept = backward ? shape_.neighbours + 1 : 1;
    return (static_cast<size_t>(kept) * shape_.hidden + 2 * shape_.relation) * lanes;
  }

  void weigh(const Tile<T> &tile, T *weight, T *memory) const {
    T *relation = memory, *hidden = memory + 2 * shape_.relation * lanes;
    const Displacements &displaced = displacements_[&tile.grid - bands_.data()];
    for (int j = 0; j < shape_.neighbours; j++) {
      relate(tile, tile.grid.offset[j], relation);
      start(displaced, tile.index, j, hidden);
      product(hidden, relation, w1t_, shape_.relation, shape_.hidden, From::kOut);
      rectify(hidden, shape_.hidden);
      product(weight + j * shape_.groups * lanes, hidden, w2t_, shape_.hidden, shape_.groups,
              From::kZero);
      if (tile.grads) hidden += shape_.hidden * lanes;
    }
    for (int group = 0; group < shape_.groups; group++) normalise(weight + group * lanes);
  }

  void unweigh(const Tile<T> &tile, const T *weight, T *grad_weight, T *memory) const {
    T *grad_relation = memory, *grad_query = memory + shape_.relation * lanes;
    T *hidden = memory + 2 * shape_.relation * lanes;
    T *grad_hidden = hidden + shape_.neighbours * shape_.hidden * lanes;
    for (int group = 0; group < shape_.groups; group++)
      unnormalise(weight + group * lanes, grad_weight + group * lanes);
    std::fill(grad_query, grad_query + shape_.relation * lanes, T(0));
    for (int j = 0; j < shape_.neighbours; j++, hidden += shape_.hidden * lanes) {
      product(grad_hidden, grad_weight + j * shape_.groups * lanes, w2_, shape_.groups,
              shape_.hidden, From::kZero);
      mask(grad_hidden, hidden, shape_.hidden);
      product(grad_relation, grad_hidden, w1_, shape_.hidden, shape_.relation, From::kZero);
      unrelate(tile, tile.grid.offset[j], grad_relation, grad_query);
    }
    for (int r = 0; r < shape_.relation; r++)
      tile.add(r, tile.grid.centre(), get(grad_query + r * lanes));
  }

 private:
  Vector<T> difference(const Tile<T> &tile, int r, int64_t offset) const {
    return get(tile.at(r, tile.grid.centre())) - get(tile.at(shape_.relation + r, offset));
  }

  void relate(const Tile<T> &tile, int64_t offset, T *relation) const {
    for (int r = 0; r < shape_.relation; r++)
      put(relation + r * lanes, rectified<T>(difference(tile, r, offset)));
  }

  void unrelate(const Tile<T> &tile, int64_t offset, const T *grad, T *grad_query) const {
    for (int r = 0; r < shape_.relation; r++) {
      const Vector<T> v =
          where_positive<T>(difference(tile, r, offset), get(grad + r * lanes));
      put(grad_query + r * lanes, get(grad_query + r * lanes) + v);
      tile.add(shape_.relation + r, offset, -v);
    }
  }

  void start(const Displacements &displaced, int64_t tile, int j, T *hidden) const {
    const T *row = table_ + static_cast<int64_t>(j) * shape_.hidden;
    for (int m = 0; m < shape_.hidden; m++) put(hidden + m * lanes, Vector<T>{} + row[m]);
    displaced.each(tile, j, [&](const Displacements::Entry &entry) {
      const T *other = table_ + entry.row * shape_.hidden;
      for (int m = 0; m < shape_.hidden; m++) hidden[m * lanes + entry.lane] = other[m];
    });
  }

  // Softmax over the neighbours of one group.
  void normalise(T *weight) const {
    const int step = shape_.groups * lanes, end = shape_.neighbours * step;
    Vector<T> largest = get(weight), sum{};
    for (int i = step; i < end; i += step) {
      const Vector<T> v = get(weight + i);
      largest = largest > v ? largest : v;
    }
    for (int i = 0; i < end; i += step) {
      const Vector<T> v = exponential(get(weight + i) - largest);
      put(weight + i, v);
      sum += v;
    }
    const Vector<T> share = T(1) / sum;
    for (int i = 0; i < end; i += step) put(weight + i, get(weight + i) * share);
  }

  void unnormalise(const T *weight, T *grad) const {
    const int step = shape_.groups * lanes, end = shape_.neighbours * step;
    Vector<T> mean{};
    for (int i = 0; i < end; i += step) mean += get(weight + i) * get(grad + i);
    for (int i = 0; i < end; i += step) put(grad + i, get(weight + i) * (get(grad + i) - mean));
  }

  Shape shape_;
  const T *w1_, *w1t_, *w2_, *w2t_, *table_;
  const std::vector<Grid> &bands_;
  std::vector<Displacements> displacements_;
};

template <class T> class Patchwise {
 public:
  using Element = T;
  static constexpr int lanes = lanes_of<T>;

  Patchwise(const PatchwiseArgs &args, const std::vector<Grid> &)
      : shape_(args), inner_((1 + shape_.neighbours) * shape_.relation),
        weights_(shape_.neighbours * shape_.groups), scale_(typed<T>(args.key_scale)),
        shift_(typed<T>(args.key_shift)), w1_(typed<T>(args.w1)), w1t_(typed<T>(args.w1t)),
        b1_(typed<T>(args.b1)), w2_(typed<T>(args.w2)), w2t_(typed<T>(args.w2t)),
        b2_(typed<T>(args.b2)) {}

  size_t scratch_values(bool) const {
    return (2 * static_cast<size_t>(inner_) + 2 * shape_.hidden) * lanes;
  }

  void weigh(const Tile<T> &tile, T *weight, T *memory) const {
    T *patch = memory, *hidden = memory + inner_ * lanes;
    collect(tile, patch);
    start(hidden, b1_, shape_.hidden);
    product(hidden, patch, w1t_, inner_, shape_.hidden, From::kOut);
    rectify(hidden, shape_.hidden);
    start(weight, b2_, weights_);
    product(weight, hidden, w2t_, shape_.hidden, weights_, From::kOut);
  }

  void unweigh(const Tile<T> &tile, const T *, T *grad_weight, T *memory) const {
    T *patch = memory, *hidden = memory + inner_ * lanes;
    T *grad_hidden = hidden + shape_.hidden * lanes;
    T *grad_patch = grad_hidden + shape_.hidden * lanes;
    product(grad_hidden, grad_weight, w2_, weights_, shape_.hidden, From::kZero);
    mask(grad_hidden, hidden, shape_.hidden);
    product(grad_patch, grad_hidden, w1_, shape_.hidden, inner_, From::kZero);
    mask(grad_patch, patch, inner_);
    for (int r = 0; r < shape_.relation; r++)
      tile.add(r, tile.grid.centre(), get(grad_patch + r * lanes));
    for (int j = 0; j < shape_.neighbours; j++)
      for (int r = 0; r < shape_.relation; r++) {
        const int at = j * shape_.relation + r;
        tile.add(shape_.relation + r, tile.grid.offset[j],
                 get(grad_patch + (shape_.relation + at) * lanes) * scale_[at]);
      }
  }

 private:
  void collect(const Tile<T> &tile, T *patch) const {
    for (int r = 0; r < shape_.relation; r++, patch += lanes)
      put(patch, rectified<T>(get(tile.at(r, tile.grid.centre()))));
    const T *scale = scale_, *shift = shift_;
    for (int j = 0; j < shape_.neighbours; j++)
      for (int r = 0; r < shape_.relation; r++, patch += lanes) {
        const Vector<T> key = get(tile.at(shape_.relation + r, tile.grid.offset[j]));
        put(patch, rectified<T>(key * *scale++ + *shift++));
      }
  }

  static void start(T *values, const T *bias, int count) {
    for (int i = 0; i < count; i++) put(values + i * lanes, Vector<T>{} + bias[i]);
  }

  Shape shape_;
  int inner_, weights_;
  const T *scale_, *shift_, *w1_, *w1t_, *b1_, *w2_, *w2t_, *b2_;
};

// Sums `N` channels that share a weight over the neighbours of a tile.
template <class T, int N>
SAN_INLINE void sum_block(const Tile<T> &tile, const Shape &shape, const T *weight, int channel,
                          T *out) {
  constexpr int lanes = lanes_of<T>;
  Vector<T> sum[N] = {};
  for (int j = 0; j < shape.neighbours; j++) {
    const Vector<T> share = get(weight + j * shape.groups * lanes);
    const T *value = tile.at(2 * shape.relation + channel, tile.grid.offset[j]);
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
        sum += g * get(tile.at(2 * shape.relation + channel, offset));
        tile.add(2 * shape.relation + channel, offset, g * share);
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
      : scale(typed<T>(args.scale)), shift(typed<T>(args.shift)), y(typed<T>(args.y)),
        out(typed<T>(args.out)), grad(typed<T>(args.grad)) {}

  // Writes the rows of one image's pixels from a vector per channel.
  void write(const Tile<T> &tile, int channels, int64_t first_pixel, const T *sum) const {
    for (int lane = 0; lane < lanes_of<T>; lane++) {
      if (tile.pixel()[lane] < 0) continue;
      const int64_t at = (first_pixel + tile.pixel()[lane]) * channels;
      for (int c = 0; c < channels; c++) {
        const T v = sum[c * lanes_of<T> + lane];
        if (y) y[at + c] = v;
        if (out) out[at + c] = scale ? relu_of(v * scale[c] + shift[c]) : v;
      }
    }
  }

  // Reads the gradient of y, a vector per channel; 0 in padding.
  void read(const Tile<T> &tile, int channels, int64_t first_pixel, T *into) const {
    std::fill(into, into + channels * lanes_of<T>, T(0));
    for (int lane = 0; lane < lanes_of<T>; lane++) {
      if (tile.pixel()[lane] < 0) continue;
      const int64_t at = (first_pixel + tile.pixel()[lane]) * channels;
      for (int c = 0; c < channels; c++) {
        const bool passes = !scale || y[at + c] * scale[c] + shift[c] > 0;
        into[c * lanes_of<T> + lane] = passes ? grad[at + c] * (scale ? scale[c] : T(1)) : T(0);
      }
    }
  }

  static T relu_of(T v) { return T(0) > v ? T(0) : v; }

  const T *scale, *shift;
  T *y, *out;
  const T *grad;
};

template <class Operator, class Args> int forward(const Args &args) {
  using T = typename Operator::Element;
  const Shape shape(args);
  const std::vector<Grid> bands = bands_of(shape, lanes_of<T>);
  const Operator weighing(args, bands);
  const Ends<T> ends(args);
  const T *qkv = typed<T>(args.qkv);
  const int64_t pixels = shape.height * shape.width;
  const int64_t tasks = shape.images * static_cast<int64_t>(bands.size());
  const size_t planes = shape.all() * largest_plane(bands);
  const size_t weights = static_cast<size_t>(shape.neighbours) * shape.groups * lanes_of<T>;
  const size_t sums = static_cast<size_t>(shape.channels) * lanes_of<T>;
  Workspaces<T> spaces(std::min<int64_t>(tasks, shape.threads),
                       planes + weights + sums + weighing.scratch_values(false));
  parallel_for(tasks, shape.threads, [&](int64_t task) {
    const int64_t image = task / bands.size(), space = spaces.take();
    const Grid &grid = bands[task % bands.size()];
    T *plane = spaces.at(space), *weight = plane + planes, *sum = weight + weights;
    spread(qkv + image * pixels * shape.all(), shape.all(), grid, plane);
    for (int64_t index = 0; index < grid.tiles(); index++) {
      const Tile<T> tile{grid, index, plane, nullptr};
      weighing.weigh(tile, weight, sum + sums);
      aggregate(tile, shape, weight, sum);
      ends.write(tile, shape.channels, image * pixels, sum);
    }
    spaces.give_back(space);
  });
  return kOk;
}

// The gradient planes of every band of some images, folded into rows in one order.
template <class T>
void fold(const Shape &shape, const std::vector<Grid> &bands, const T *grads, size_t each,
          int64_t images, T *grad_qkv) {
  const int64_t row = shape.width * shape.all();
  parallel_for(images * shape.height, shape.threads, [&](int64_t task) {
    const int64_t image = task / shape.height, y = task % shape.height;
    T *to = grad_qkv + image * shape.height * row;
    std::fill(to + y * row, to + (y + 1) * row, T(0));
    for (size_t band = 0; band < bands.size(); band++)
      gather(grads + (image * bands.size() + band) * each, shape.all(), bands[band], y, to);
  });
}

template <class Operator, class Args> int backward(const Args &args) {
  using T = typename Operator::Element;
  const Shape shape(args);
  const std::vector<Grid> bands = bands_of(shape, lanes_of<T>);
  const Operator weighing(args, bands);
  const Ends<T> ends(args);
  const int64_t pixels = shape.height * shape.width, count = bands.size();
  const size_t planes = shape.all() * largest_plane(bands);
  const size_t weights = static_cast<size_t>(shape.neighbours) * shape.groups * lanes_of<T>;
  const size_t sums = static_cast<size_t>(shape.channels) * lanes_of<T>;
  // A few images at a time, so that the gradient planes stay small.
  const int64_t some = std::min<int64_t>(shape.images, (4 * shape.threads + count - 1) / count);
  T *grads = scratch<T>(1, some * count * planes);
  Workspaces<T> spaces(std::min<int64_t>(some * count, shape.threads),
                       planes + 2 * weights + sums + weighing.scratch_values(true));
  for (int64_t first = 0; first < shape.images; first += some) {
    const int64_t images = std::min(some, shape.images - first);
    const T *qkv = typed<T>(args.qkv) + first * pixels * shape.all();
    parallel_for(images * count, shape.threads, [&](int64_t task) {
      const int64_t image = task / count, space = spaces.take();
      const Grid &grid = bands[task % count];
      T *plane = spaces.at(space), *weight = plane + planes, *grad_weight = weight + weights;
      T *grad = grad_weight + weights, *memory = grad + sums;
      T *grad_planes = grads + task * planes;
      spread(qkv + image * pixels * shape.all(), shape.all(), grid, plane);
      std::fill(grad_planes, grad_planes + shape.all() * grid.plane, T(0));
      for (int64_t index = 0; index < grid.tiles(); index++) {
        const Tile<T> tile{grid, index, plane, grad_planes};
        weighing.weigh(tile, weight, memory);
        ends.read(tile, shape.channels, (first + image) * pixels, grad);
        unaggregate(tile, shape, grad, weight, grad_weight);
        weighing.unweigh(tile, weight, grad_weight, memory);
      }
      spaces.give_back(space);
    });
    fold(shape, bands, grads, planes, images,
         typed<T>(args.grad_qkv) + first * pixels * shape.all());
  }
  return kOk;
}

}  // namespace

int generic_forward(const PairwiseArgs &args) {
  return args.element == kDouble ? forward<Pairwise<double>>(args)
                                 : forward<Pairwise<float>>(args);
}
int generic_backward(const PairwiseArgs &args) {
  return args.element == kDouble ? backward<Pairwise<double>>(args)
                                 : backward<Pairwise<float>>(args);
}
int generic_forward(const PatchwiseArgs &args) {
  return args.element == kDouble ? forward<Patchwise<double>>(args)
                                 : forward<Patchwise<float>>(args);
}
int generic_backward(const PatchwiseArgs &args) {
  return args.element == kDouble ? backward<Patchwise<double>>(args)
                                 : backward<Patchwise<float>>(args);
}

}  // namespace san
