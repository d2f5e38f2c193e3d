// Pairwise attention of any shape, in float and double.
#include "generic.h"
#include "generic_pass.h"

namespace san {
namespace {

using namespace lanewise;

// What a row of the table stands for (api.h).
enum class Table { kDisplacement, kPixel, kPlace };

// Which rows of the table are not those of the neighbour's nominal displacement, by tile and
// neighbour: reflected neighbours, those outside the map, and with any other table all.
class Displacements {
 public:
  struct Entry {
    int lane;
    int64_t row;
  };

  Displacements(const Shape &shape, const Grid &grid, Table table)
      : shape_(shape), grid_(grid), table_(table),
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
        const bool plain = down == dy && table_ == Table::kDisplacement;
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
    if (row == neighbour && table_ == Table::kDisplacement) return;
    const int64_t position = y * grid_.pitch + x, pixel = grid_.pixel[position];
    body(position / grid_.lanes * shape_.neighbours + neighbour,
         Entry{static_cast<int>(position % grid_.lanes),
               table_ == Table::kPlace   ? place(neighbour, y, x)
               : table_ == Table::kPixel ? pixel * (shape_.neighbours + 1) + row
                                         : row});
  }

  // The row of a neighbour's place; that of the outside comes last.
  int64_t place(int neighbour, int64_t y, int64_t x) const {
    const int64_t row = grid_.row_source[y + neighbour / shape_.footprint];
    const int64_t column = grid_.column_source[x + neighbour % shape_.footprint];
    return row < 0 || column < 0 ? shape_.height * shape_.width : row * shape_.width + column;
  }

  int64_t step(int64_t source, int64_t own) const {
    return source < 0 ? -1 : source - own + grid_.reach;
  }

  const Shape &shape_;
  const Grid &grid_;
  Table table_;
  std::vector<int64_t> starts_;
  std::vector<Entry> entries_;
};

template <class T> class Pairwise {
 public:
  using Element = T;
  static constexpr int lanes = lanes_of<T>;

  Pairwise(const PairwiseArgs &args, const std::vector<Grid> &bands)
      : shape_(args), delta_(args.delta), mapping_(args.mapping),
        by_place_(args.table_by_place != 0), learns_(args.grad_table != nullptr),
        w1_(typed<T>(args.w1)), w1t_(typed<T>(args.w1t)), w2_(typed<T>(args.w2)), w2t_(typed<T>(args.w2t)),
        table_(typed<T>(args.table)), offset_(typed<T>(args.offset)),
        w_mid_(typed<T>(args.w_mid)), w_mid_t_(typed<T>(args.w_mid_t)),
        b_mid_(typed<T>(args.b_mid)), bands_(bands) {
    const Table table = by_place_              ? Table::kPlace
                        : args.table_per_pixel ? Table::kPixel
                                               : Table::kDisplacement;
    for (const Grid &grid : bands_) displacements_.emplace_back(shape_, grid, table);
  }

  size_t scratch_values(bool backward) const {
    const int kept = backward ? layers() * (shape_.neighbours + 1) : layers();
    return (static_cast<size_t>(kept) * shape_.hidden + 2 * shape_.relation) * lanes;
  }

  void weigh(const Tile<T> &tile, T *weight, T *memory) const {
    T *relation = memory, *hidden = memory + 2 * shape_.relation * lanes;
    const Displacements &displaced = displacements_[&tile.grid - bands_.data()];
    for (int j = 0; j < shape_.neighbours; j++) {
      T *logits = weight + j * shape_.groups * lanes;
      T *first = mapping_ == kL ? logits : hidden;
      start(displaced, tile.index, j, first);
      relate(tile, tile.grid.offset[j], relation, first);
      if (mapping_ == kL) continue;
      rectify(first, shape_.hidden);
      T *last = first;
      if (mapping_ == kLRLRL) {
        last += shape_.hidden * lanes;
        for (int m = 0; m < shape_.hidden; m++) put(last + m * lanes, Vector<T>{} + b_mid_[m]);
        product(last, first, w_mid_t_, shape_.hidden, shape_.hidden, From::kOut);
        rectify(last, shape_.hidden);
      }
      product(logits, last, w2t_, shape_.hidden, shape_.groups, From::kZero);
      if (tile.grads) hidden += layers() * shape_.hidden * lanes;
    }
    normalise(shape_, weight);
  }

  // The parameters' gradients that are wanted.
  std::vector<typename Learned<T>::Gradient> gradients(const PairwiseArgs &args) const {
    const int64_t hidden = shape_.hidden;
    return {{args.grad_w1t, compared() * hidden},
            {args.grad_table, (shape_.neighbours + 1) * hidden},
            {args.grad_w2t, hidden * shape_.groups}};
  }

  void unweigh(const Tile<T> &tile, const T *weight, T *grad_weight, T *memory, T *sums) const {
    const int width = shape_.hidden * lanes;
    T *grad_relation = memory, *grad_query = memory + shape_.relation * lanes;
    T *hidden = memory + 2 * shape_.relation * lanes;
    T *grad_hidden = hidden + layers() * shape_.neighbours * width;
    const Vector<T> inside = tile.inside();
    unnormalise(shape_, weight, grad_weight);
    std::fill(grad_query, grad_query + shape_.relation * lanes, T(0));
    for (int j = 0; j < shape_.neighbours; j++, hidden += layers() * width) {
      T *first = grad_weight + j * shape_.groups * lanes;
      if (mapping_ != kL) {
        T *last = grad_hidden + (layers() - 1) * width;
        product(last, first, w2_, shape_.groups, shape_.hidden, From::kZero);
        mask(last, hidden + (layers() - 1) * width, shape_.hidden);
        first = grad_hidden;
        if (mapping_ == kLRLRL) {
          product(first, last, w_mid_, shape_.hidden, shape_.hidden, From::kZero);
          mask(first, hidden, shape_.hidden);
        }
      }
      if (learns_) {
        learn(displacements_[&tile.grid - bands_.data()], tile, j, first, grad_relation, sums);
        add_products(sums + first_sums() * lanes, hidden, shape_.hidden,
                     grad_weight + j * shape_.groups * lanes, shape_.groups);
      }
      back(tile, tile.grid.offset[j], first, inside, grad_relation, grad_query);
    }
    for (int r = 0; r < shape_.relation; r++)
      tile.add(r, tile.grid.centre(), get(grad_query + r * lanes));
  }

  // Calls body(first layer of all lanes, neighbour) for each.
  template <class Body>
  void each_first(const Tile<T> &tile, T *memory, const Body &body) const {
    T *first = memory + 2 * shape_.relation * lanes;
    for (int j = 0; j < shape_.neighbours; j++) {
      start(displacements_[&tile.grid - bands_.data()], tile.index, j, first);
      relate(tile, tile.grid.offset[j], memory, first);
      body(first, j);
    }
  }

  // The gradients of a tile where each pair's first layer has slope[0] + slope[1] (it - slope[2]).
  void unmeasure(const Tile<T> &tile, const T *slope, T *memory, T *sums) const {
    T *relation = memory, *grad_query = memory + shape_.relation * lanes;
    const Vector<T> inside = tile.inside();
    const int hidden = shape_.hidden;
    std::fill(grad_query, grad_query + shape_.relation * lanes, T(0));
    each_first(tile, memory, [&](T *first, int j) {
      for (int m = 0; m < hidden; m++) {
        const Vector<T> value = get(first + m * lanes) - slope[2 * hidden + m];
        put(first + m * lanes, where_positive<T>(inside, value * slope[hidden + m] + slope[m]));
      }
      learn(displacements_[&tile.grid - bands_.data()], tile, j, first, relation, sums);
      back(tile, tile.grid.offset[j], first, inside, relation, grad_query);
    });
    for (int r = 0; r < shape_.relation; r++)
      tile.add(r, tile.grid.centre(), get(grad_query + r * lanes));
  }

 private:
  // Hidden layers, and channels of what the first product takes.
  int layers() const { return mapping_ == kL ? 0 : mapping_ == kLRL ? 1 : 2; }
  int compared() const { return delta_ == kDot ? 1 : shape_.relation; }

  Vector<T> query(const Tile<T> &tile, int r) const {
    return get(tile.at(r, tile.grid.centre()));
  }
  Vector<T> key(const Tile<T> &tile, int r, int64_t offset) const {
    return get(tile.at(shape_.relation + r, offset));
  }
  Vector<T> difference(const Tile<T> &tile, int r, int64_t offset) const {
    return query(tile, r) - key(tile, r, offset);
  }
  Vector<T> scaled(const Tile<T> &tile, int r, int64_t offset) const {
    return query(tile, r) * key(tile, r, offset) + offset_[r];
  }
  Vector<T> dot(const Tile<T> &tile, int64_t offset) const {
    Vector<T> sum = Vector<T>{} + offset_[0];
    for (int r = 0; r < shape_.relation; r++) sum += query(tile, r) * key(tile, r, offset);
    return sum;
  }

  int64_t first_sums() const {
    return (compared() + shape_.neighbours + 1) * static_cast<int64_t>(shape_.hidden);
  }

  // Adds the products of the relation with the first layer's gradient to the sums of w1t, and that
  // gradient to those of the table.
  void learn(const Displacements &displaced, const Tile<T> &tile, int j, const T *first,
             T *relation, T *sums) const {
    compare(tile, tile.grid.offset[j], relation);
    add_products(sums, relation, compared(), first, shape_.hidden);
    T *table = sums + compared() * shape_.hidden * lanes;
    T *nominal = table + j * shape_.hidden * lanes;
    for (int i = 0; i < shape_.hidden * lanes; i += lanes)
      put(nominal + i, get(nominal + i) + get(first + i));
    displaced.each(tile.index, j, [&](const Displacements::Entry &entry) {
      T *other = table + entry.row * shape_.hidden * lanes;
      for (int i = entry.lane; i < shape_.hidden * lanes; i += lanes) {
        nominal[i] -= first[i];
        other[i] += first[i];
      }
    });
  }

  // From the gradient of the first layer to those of query and key.
  void back(const Tile<T> &tile, int64_t offset, const T *first, const Vector<T> &inside,
            T *grad_relation, T *grad_query) const {
    if (delta_ != kConcatenation)
      product(grad_relation, first, w1_, shape_.hidden, compared(), From::kZero);
    unrelate(tile, offset, delta_ == kConcatenation ? first : grad_relation, inside, grad_query);
  }

  // The relation, of all but a concatenation.
  void compare(const Tile<T> &tile, int64_t offset, T *relation) const {
    for (int r = 0; r < compared(); r++)
      put(relation + r * lanes,
          rectified<T>(delta_ == kDot        ? dot(tile, offset)
                       : delta_ == kHadamard ? scaled(tile, r, offset)
                                             : difference(tile, r, offset)));
  }

  // Adds to the first layer what the relation gives.
  void relate(const Tile<T> &tile, int64_t offset, T *relation, T *first) const {
    if (delta_ == kConcatenation) {
      for (int m = 0; m < shape_.hidden; m++)
        put(first + m * lanes, get(first + m * lanes) + difference(tile, m, offset));
      return;
    }
    compare(tile, offset, relation);
    product(first, relation, w1t_, compared(), shape_.hidden, From::kOut);
  }

  // From the gradient of the relation (of the first layer of a concatenation) to those of query
  // and key.
  void unrelate(const Tile<T> &tile, int64_t offset, const T *grad, const Vector<T> &inside,
                T *grad_query) const {
    const Vector<T> one =
        delta_ == kDot ? where_positive<T>(dot(tile, offset), get(grad)) : Vector<T>{};
    for (int r = 0; r < (delta_ == kConcatenation ? shape_.hidden : shape_.relation); r++) {
      Vector<T> to_query, to_key;
      if (delta_ == kHadamard || delta_ == kDot) {
        const Vector<T> v = delta_ == kDot ? one
                                           : where_positive<T>(scaled(tile, r, offset),
                                                               get(grad + r * lanes));
        to_query = v * key(tile, r, offset);
        to_key = where_positive<T>(inside, v * query(tile, r));
      } else {
        to_query = get(grad + r * lanes);
        if (delta_ == kSubtraction)
          to_query = where_positive<T>(difference(tile, r, offset), to_query);
        to_key = -to_query;
      }
      put(grad_query + r * lanes, get(grad_query + r * lanes) + to_query);
      tile.add(shape_.relation + r, offset, to_key);
    }
  }

  void start(const Displacements &displaced, int64_t tile, int j, T *hidden) const {
    const T *row = by_place_ ? table_ : table_ + static_cast<int64_t>(j) * shape_.hidden;
    for (int m = 0; m < shape_.hidden; m++) put(hidden + m * lanes, Vector<T>{} + row[m]);
    displaced.each(tile, j, [&](const Displacements::Entry &entry) {
      const T *other = table_ + entry.row * shape_.hidden;
      for (int m = 0; m < shape_.hidden; m++) hidden[m * lanes + entry.lane] = other[m];
    });
  }

  Shape shape_;
  const int delta_, mapping_;
  const bool by_place_, learns_;
  const T *w1_, *w1t_, *w2_, *w2t_, *table_, *offset_, *w_mid_, *w_mid_t_, *b_mid_;
  const std::vector<Grid> &bands_;
  std::vector<Displacements> displacements_;
};

// Sums of the distance of first layers from one that occurs, and of its square, by tasks.
template <class T> int measure(const PairwiseArgs &args) {
  const Call<Pairwise<T>, PairwiseArgs> call(args);
  const int hidden = args.hidden;
  std::vector<double> sums(call.tasks * 2 * hidden);
  std::vector<T> centre(hidden);
  call.each_tile(1, 0, [&](int64_t, const Tile<T> &tile, T *memory) {
    if (tile.index == 0)
      call.weighing.each_first(tile, memory, [&](const T *first, int) {
        for (int m = 0; m < hidden; m++) centre[m] = first[m * lanes_of<T>];
      });
  });
  call.each_tile(call.tasks, 0, [&](int64_t task, const Tile<T> &tile, T *memory) {
    const Vector<T> inside = tile.inside();
    double *own = sums.data() + task * 2 * hidden;
    call.weighing.each_first(tile, memory, [&](const T *first, int) {
      for (int m = 0; m < hidden; m++) {
        const Vector<T> distance =
            where_positive<T>(inside, get(first + m * lanes_of<T>) - centre[m]);
        for (int lane = 0; lane < lanes_of<T>; lane++) {
          own[m] += distance[lane];
          own[hidden + m] += static_cast<double>(distance[lane]) * distance[lane];
        }
      }
    });
  });
  const double pairs = static_cast<double>(args.images * args.height * args.width) *
                       call.shape.neighbours;
  for (int m = 0; m < hidden; m++) {
    double sum = 0, square = 0;
    for (int64_t task = 0; task < call.tasks; task++)
      sum += sums[task * 2 * hidden + m], square += sums[(task * 2 + 1) * hidden + m];
    args.moments[m] = centre[m] + sum / pairs;
    const double variance = square / pairs - sum / pairs * (sum / pairs);
    args.moments[hidden + m] = variance < 0 ? 0 : variance;  // and NaN stays
  }
  return kOk;
}

template <class T> int unmeasure(const PairwiseArgs &args) {
  const Call<Pairwise<T>, PairwiseArgs> call(args);
  call.scatter(0, [&](const Tile<T> &tile, T *memory, T *sums) {
    call.weighing.unmeasure(tile, typed<T>(args.slope), memory, sums);
  });
  return kOk;
}

}  // namespace

int generic_moments(const PairwiseArgs &args) {
  return args.element == kDouble ? measure<double>(args) : measure<float>(args);
}
int generic_moments_backward(const PairwiseArgs &args) {
  return args.element == kDouble ? unmeasure<double>(args) : unmeasure<float>(args);
}
int generic_forward(const PairwiseArgs &args) {
  return args.element == kDouble ? forward<Pairwise<double>>(args)
                                 : forward<Pairwise<float>>(args);
}
int generic_backward(const PairwiseArgs &args) {
  return args.element == kDouble ? backward<Pairwise<double>>(args)
                                 : backward<Pairwise<float>>(args);
}

}  // namespace san
