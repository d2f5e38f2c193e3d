// Pairwise attention of float maps for one width of the mapping: what both passes share.
//
// Reflected neighbours repeat pixels within reach, so each distinct neighbour of the window
// clipped to the map is computed once and counted as often as it occurs. Zero padding is one more
// neighbour, with key and value 0. A pixel's pairs are the rows of small matrix products. Which
// delta and which mapping is asked for once for some pairs, between the products.
#pragma once
#include <vector>

#include "api.h"
#include "parallel.h"
#include "tile.h"

namespace san {

constexpr int kMostNeighbours = 121;  // footprint 11
constexpr int kMostReach = 5;
constexpr int kShare = 8;  // channels that share an attention weight
constexpr int kMostParts = 4;  // of the relation, each as wide as the mapping's hidden layers

// The sizes of one width of hidden layers. Channel c of the value has the attention weight
// c % kGroups; a "bundle" is the channels of as many groups as fill a vector.
template <int Width> struct PairwiseShape {
  static constexpr int kGroups = Width / 2, kChannels = kShare * kGroups;
  static constexpr int kMostRelation = kMostParts * Width;
  static constexpr int kSignWords = Width / 16;
  static constexpr int kLane = lanes_for(Width);
  static constexpr int kGroupLane = lanes_for(kGroups);
  static constexpr int kRows = rows_for(Width);
  static constexpr int kRepeat = kLane / kGroupLane;  // 2 where the groups fill half a vector
  static constexpr int kBundle = kShare / kRepeat;    // vectors of channels in a bundle
  using Wide = Vec<kLane>;

  // Where vector v of the bundle that starts with group s lies among the channels.
  static constexpr int channel(int s, int v) { return kRepeat > 1 ? v * kLane : v * kGroups + s; }

  // The weights of a bundle's groups, for every lane of a vector of channels.
  static SAN_INLINE Wide weights(const float *p) {
    if constexpr (kRepeat > 1) return load_twice<kLane>(p);
    else return load<kLane>(p);
  }
  // The sum over a bundle's channels of one group, from the sum over its vectors.
  static SAN_INLINE Vec<kGroupLane> groups_sum(Wide sum) {
    if constexpr (kRepeat > 1) return halves_sum<kLane>(sum);
    else return sum;
  }
};

// The neighbours inside the map along one axis: positions first..last, and how often each occurs.
struct Reach {
  int first, last;
  float times[2 * kMostReach + 1];
  bool once;  // each occurs once, and none lies outside
  int count() const { return last - first + 1; }
};

inline std::vector<Reach> reaches(int64_t side, int footprint, int padding) {
  std::vector<Reach> found(static_cast<size_t>(side));
  const int reach = footprint / 2;
  for (int i = 0; i < side; i++) {
    Reach &each = found[static_cast<size_t>(i)];
    each.first = std::max(0, i - reach);
    each.last = static_cast<int>(std::min<int64_t>(side - 1, i + reach));
    each.once = each.count() == footprint;
    for (int j = each.first; j <= each.last; j++)
      each.times[j - each.first] =
          padding == kReflect ? static_cast<float>(multiplicity(i, j, side, reach)) : 1.0f;
  }
  return found;
}

// What forward and backward know about the map and its windows.
template <int Width> class PairwiseMap : protected PairwiseShape<Width> {
 protected:
  using Shape = PairwiseShape<Width>;

  // The distinct neighbours of one pixel, row by row; with zero padding the outside comes last.
  struct Window {
    int count, inside;  // distinct neighbours, and those inside the map
    bool once;          // every neighbour occurs once
    const float *key[kMostNeighbours];
    const float *table[kMostNeighbours];
    float times[kMostNeighbours];
  };

  explicit PairwiseMap(const PairwiseArgs &args)
      : args_(args), width_(static_cast<int>(args.width)), height_(static_cast<int>(args.height)),
        reach_(args.footprint / 2), positions_(args.footprint * args.footprint),
        relation_(args.relation), step_(2 * args.relation + args.channels),
        layers_(args.mapping == kL ? 0 : args.mapping == kLRL ? 1 : 2),
        rows_(reaches(args.height, args.footprint, args.padding)),
        columns_(reaches(args.width, args.footprint, args.padding)),
        qkv_(static_cast<const float *>(args.qkv)) {}

  bool outside(const Reach &row, const Reach &column) const {
    return args_.padding == kZeros && !(row.once && column.once);
  }

  void find(Window &window, int64_t image, int y, int x) const {
    const Reach &row = rows_[static_cast<size_t>(y)], &column = columns_[static_cast<size_t>(x)];
    const bool by_place = args_.table_by_place;
    const float *table = static_cast<const float *>(args_.table);
    if (args_.table_per_pixel)
      table += (static_cast<int64_t>(y) * width_ + x) * (positions_ + 1) * args_.hidden;
    int n = 0;
    for (int j = row.first; j <= row.last; j++) {
      const float *key = pixel(image, j, column.first) + relation_;
      const int displacement = (j - y + reach_) * args_.footprint + column.first - x + reach_;
      const float *entry =
          table + (by_place ? j * width_ + column.first : displacement) * args_.hidden;
      for (int i = 0; i < column.count(); i++, n++) {
        window.key[n] = key + i * step_;
        window.table[n] = entry + i * args_.hidden;
        window.times[n] = row.times[j - row.first] * column.times[i];
      }
    }
    window.inside = n;
    window.once = row.once && column.once;
    if (outside(row, column)) {
      window.key[n] = kOutside;
      window.table[n] = table + (by_place ? height_ * width_ : positions_) * args_.hidden;
      window.times[n] = static_cast<float>(positions_ - n);
      n++;
    }
    window.count = n;
  }

  // Moves the window of the pixel to the left one pixel on, where both see whole rows.
  void shift(Window &window) const {
    const int inside = window.inside;
    const int entry = args_.table_by_place ? args_.hidden
                                           : args_.table_per_pixel * (positions_ + 1) * args_.hidden;
    for (int n = 0; n < inside; n++) window.key[n] += step_;
    if (entry)
      for (int n = 0; n < (args_.table_by_place ? inside : window.count); n++)
        window.table[n] += entry;
  }

  // Whether a pixel and the one to its left see whole rows.
  bool follows(int x) const {
    return x > 0 && columns_[static_cast<size_t>(x)].once &&
           columns_[static_cast<size_t>(x) - 1].once;
  }

  const float *pixel(int64_t image, int y, int x) const {
    return qkv_ + ((image * height_ + y) * width_ + x) * step_;
  }

  // Where the signs of a pixel's pairs lie: of a hidden layer, and of what kDot compares.
  uint16_t *signs(int64_t pixel) const {
    const int words = layers_ * Shape::kSignWords + (args_.delta == kDot);
    return args_.signs ? args_.signs + pixel * positions_ * words : nullptr;
  }
  int layer_signs(int layer) const { return layer * positions_ * Shape::kSignWords; }

  // Key and value outside the map.
  alignas(64) static constexpr float kOutside[Shape::kMostRelation + Shape::kChannels] = {};

  const PairwiseArgs &args_;
  const int width_, height_, reach_, positions_;
  const int relation_, step_;  // channels that are compared, and floats of a pixel in qkv
  const int layers_;           // hidden layers
  const std::vector<Reach> rows_, columns_;
  const float *const qkv_;
};

}  // namespace san
