// Patchwise attention of float maps for one relation width: what both passes share.
//
// Some pixels together are the rows of matrix products: their keys, neighbour by neighbour, are
// gathered into a panel that stays in the nearest cache.
#pragma once
#include "api.h"
#include "tasks.h"
#include "tile.h"
#include "window.h"

namespace san::patchwise {

constexpr int kPanel = 128;             // floats of a pixel's part of a panel
constexpr int kPanelRow = kPanel + 16;  // no power of two, or rows would share cache sets
constexpr int kSharing = 8;             // channels that share a weight

// Sizes of one relation width. Value channel c has the weight c % kGroups.
template <int Relation> struct Sizes {
  static constexpr int kGroups = Relation / 2, kHidden = kGroups, kChannels = kSharing * kGroups;
  static constexpr int kMerged = 2 * Relation + kChannels;  // floats of a pixel in qkv
  static constexpr int kKeyAt = Relation, kValueAt = 2 * Relation;
  static constexpr int kRelationLanes = lanes_for(Relation), kGroupLanes = lanes_for(kGroups);
  static constexpr int kRows = rows_for(kGroups);           // pixels of a tile
  // A bundle is the channels of as many groups as fill a vector.
  static constexpr int kLane = lanes_for(kChannels);
  static constexpr int kRepeat = kLane / kGroupLanes;       // 2 where the groups fill half of it
  static constexpr int kBundle = kSharing / kRepeat;        // its vectors
  // Pixels summed up together, so that what they share is loaded once: as registers allow.
  static constexpr int kTogether = kVectorRegisters >= 32 ? 16 / kBundle : 1;
  using Wide = Vec<kLane>;

  // Where vector v of the bundle of the groups s.. lies among the channels.
  static constexpr int channel(int s, int v) { return kRepeat > 1 ? v * kLane : v * kGroups + s; }
  static SAN_INLINE Wide weights(const float *p) {
    if constexpr (kRepeat > 1) return load_twice<kLane>(p);
    else return load<kLane>(p);
  }
  static SAN_INLINE Vec<kGroupLanes> groups_sum(Wide sum) {
    if constexpr (kRepeat > 1) return halves_sum<kLane>(sum);
    else return sum;
  }
};

// Pixels of one row of the map that follow each other in a tile, from its pixel `at` on.
struct Run {
  int at, count;
  int64_t image, y, x;
};

// What forward and backward share: the map, its continuation, the layers' products.
template <int Relation>
class Map : protected Sizes<Relation>, protected Window<Sizes<Relation>::kGroups> {
 protected:
  using Own = Sizes<Relation>;
  using On = Window<Own::kGroups>;
  using On::footprint_, On::height_, On::near_, On::reach_, On::width_;
  using Own::kChannels, Own::kGroupLanes, Own::kGroups, Own::kHidden, Own::kKeyAt, Own::kLane,
      Own::kMerged, Own::kRelationLanes, Own::kRepeat, Own::kRows, Own::kTogether, Own::kValueAt;

  explicit Map(const PatchwiseArgs &args)
      : On(args), args_(args),
        row_of_(sources(-reach_, height_ + 2 * reach_, height_, args.padding == kZeros)),
        column_of_(sources(-reach_, width_ + 2 * reach_, width_, args.padding == kZeros)),
        qkv_(pointer(args.qkv)) {}

  static const float *pointer(const void *p) { return static_cast<const float *>(p); }
  static float *pointer(void *p) { return static_cast<float *>(p); }

  // Floats of a tile's weights: [kRows][neighbour][group].
  size_t weights_size() const { return static_cast<size_t>(kRows * near_ * kGroups); }

  int runs(int64_t pixel, int rows, Run (&found)[kRows]) const {
    int count = 0;
    for (int at = 0; at < rows; count++) {
      Run &run = found[count];
      run.x = (pixel + at) % width_;
      run.y = (pixel + at) / width_ % height_;
      run.image = (pixel + at) / (width_ * height_);
      run.at = at;
      run.count = static_cast<int>(std::min<int64_t>(rows - at, width_ - run.x));
      at += run.count;
    }
    return count;
  }

  // Calls line(run, y, x) for each run: neighbour `near` of its pixels is in row y (-1: none) from
  // x on, the row continued past its ends.
  template <int Rows, class Line>
  SAN_INLINE void each_line(const Run *run, int near, const Line &line) const {
    for (int m = 0; m < Rows; m += run->count, run++)
      line(*run, row_of_[static_cast<size_t>(run->y + near / footprint_)],
           run->x + near % footprint_ - reach_);
  }

  // Calls inside(m, column) for each pixel of a line, outside(m) where there is none.
  template <class Inside, class Outside>
  SAN_INLINE void each_column(const Run &run, int64_t y, int64_t x, const Inside &inside,
                              const Outside &outside) const {
    const int64_t *column = &column_of_[static_cast<size_t>(x + reach_)];
    const int end = run.at + run.count;
    if (y >= 0 && x >= 0 && x + run.count <= width_)
      for (int m = run.at; m < end; m++) inside(m, x + m - run.at);
    else
      for (int m = run.at; m < end; m++, column++)
        y < 0 || *column < 0 ? outside(m) : inside(m, *column);
  }

  const float *keys_of(const Run &run, int64_t y) const {
    return qkv_ + (run.image * height_ + std::max<int64_t>(y, 0)) * width_ * kMerged + kKeyAt;
  }

  // As `product`, but a tile of more rows than fit beside each other twice is one vector wide.
  template <int Rows, int Columns, class Init, class Epilogue>
  static SAN_INLINE void multiply(const float *a, int64_t lda, const float *b, int64_t ldb,
                                  int inner, const Init &init, const Epilogue &epilogue) {
    constexpr int lanes = lanes_for(Columns);
    constexpr int vectors = Rows <= kRowsWide && Columns / lanes % 2 == 0 ? 2 : 1;
    for (int c = 0; c < Columns; c += vectors * lanes)
      tile<Rows, vectors, lanes>(
          a, lda, b + c, ldb, inner, [&](int m, int v) { return init(m, c + v * lanes); },
          [&](int m, int v, Vec<lanes> sum) { epilogue(m, c + v * lanes, sum); });
  }

  // A tile's hidden layer as it is given.
  template <int Rows> void read_hidden(int64_t pixel, float *hidden) const {
    const float *given = pointer(args_.h) + pixel * kHidden;
    for (int i = 0; i < Rows * kHidden; i += kGroupLanes)
      store<kGroupLanes>(hidden + i, relu<kGroupLanes>(load<kGroupLanes>(given + i)));
  }

  // The weights of a tile from its hidden layer.
  template <int Rows> void weigh(const float *hidden, float *weights) const {
    const int64_t row = near_ * kGroups;
    constexpr int block = kRepeat > 1 ? kLane : kGroups;
    int c = 0;
    for (; c + block <= row; c += block) weigh_block<Rows, block>(hidden, row, c, weights);
    if (c < row) weigh_block<Rows, kGroups>(hidden, row, c, weights);
  }

  template <int Rows, int Columns>
  SAN_INLINE void weigh_block(const float *hidden, int64_t row, int first, float *weights) const {
    constexpr int lanes = lanes_for(Columns);
    const float *w2t = pointer(args_.w2t) + first, *b2 = pointer(args_.b2) + first;
    multiply<Rows, Columns>(
        hidden, kHidden, w2t, row, kHidden, [&](int, int c) { return load<lanes>(b2 + c); },
        [&](int m, int c, Vec<lanes> sum) { store<lanes>(weights + m * row + first + c, sum); });
  }

  // The queries of a tile behind their relu, kPanelRow apart.
  template <int Rows> SAN_INLINE void fill_queries(int64_t pixel, float *panel) const {
    for (int m = 0; m < Rows; m++)
      for (int r = 0; r < Relation; r += kRelationLanes)
        store<kRelationLanes>(panel + m * kPanelRow + r,
                              relu<kRelationLanes>(load<kRelationLanes>(
                                  qkv_ + (pixel + m) * kMerged + r)));
  }

  // A column of blocks of the panel: the keys of one neighbour, normalised, behind a relu.
  template <int Rows> SAN_INLINE void fill(const Run *run, int near, float *panel) const {
    constexpr int lanes = kRelationLanes, vectors = Relation / lanes;
    static const float outside[Relation] = {};
    const float *scales = pointer(args_.key_scale) + near * Relation;
    const float *shifts = pointer(args_.key_shift) + near * Relation;
    Vec<lanes> scale[vectors], shift[vectors];
    SAN_UNROLL for (int v = 0; v < vectors; v++) {
      scale[v] = load<lanes>(scales + v * lanes);
      shift[v] = load<lanes>(shifts + v * lanes);
    }
    const auto put = [&](int m, const float *key) __attribute__((always_inline)) {
      SAN_UNROLL for (int v = 0; v < vectors; v++)
        store<lanes>(panel + m * kPanelRow + v * lanes,
                     relu<lanes>(load<lanes>(key + v * lanes) * scale[v] + shift[v]));
    };
    each_line<Rows>(run, near, [&](const Run &line, int64_t y, int64_t x) {
      const float *keys = keys_of(line, y);
      each_column(line, y, x, [&](int m, int64_t column) { put(m, keys + column * kMerged); },
                        [&](int m) { put(m, outside); });
    });
  }

  template <class Body> SAN_INLINE void each_together(int64_t end, const Body &body) const {
    On::template each_together<kTogether>(end, body);
  }

  const PatchwiseArgs &args_;
  const std::vector<int64_t> row_of_, column_of_;
  const float *const qkv_;
};

}  // namespace san::patchwise
