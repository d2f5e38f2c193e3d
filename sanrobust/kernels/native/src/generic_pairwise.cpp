// Pairwise attention of any shape, in float and double.
#include "generic.h"
#include "generic_pass.h"

namespace san {
namespace {

using namespace lanewise;

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

}  // namespace

int generic_forward(const PairwiseArgs &args) {
  return args.element == kDouble ? forward<Pairwise<double>>(args)
                                 : forward<Pairwise<float>>(args);
}
int generic_backward(const PairwiseArgs &args) {
  return args.element == kDouble ? backward<Pairwise<double>>(args)
                                 : backward<Pairwise<float>>(args);
}

}  // namespace san
