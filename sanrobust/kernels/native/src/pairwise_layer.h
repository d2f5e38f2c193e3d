// The first layer of the mapping of some pairs, as both passes of pairwise attention compute it.
#pragma once
#include <limits>

#include "pairwise_map.h"

namespace san {

template <int Width> class PairwiseLayer : protected PairwiseMap<Width> {
 protected:
  using Map = PairwiseMap<Width>;
  using Shape = PairwiseShape<Width>;
  using Window = typename Map::Window;
  using Map::args_;
  static constexpr int kLane = Shape::kLane;
  static constexpr float kNone = -std::numeric_limits<float>::infinity();

  explicit PairwiseLayer(const PairwiseArgs &args)
      : Map(args), floor_(args.mapping == kL || args.moments || args.slope ? kNone : 0.0f) {}

  // The first layer of some pairs. Of a relation wider than the layer one part after another is
  // multiplied, and added to what there is.
  template <int Rows, int Columns>
  SAN_INLINE void layer(const float *query, const Window &window, int first, float *t, float *out,
                        uint16_t *signs) const {
    constexpr int lane = lanes_for(Columns);
    const float *const *key = window.key + first, *const *start = window.table + first;
    if (args_.delta == kConcatenation) return add_halves<Rows, Columns>(query, key, start, out);
    if (args_.delta == kDot) {
      dots<Rows>(query, key, t);
      if (signs)
        for (int m = 0; m < Rows; m++)
          signs[this->layer_signs(this->layers_) + first + m] = t[m] > 0;
      return add_dots<Rows, Columns>(t, start, out);
    }
    const float *begun[Rows];
    for (int part = 0; part < this->relation_; part += Width) {
      compare<Rows>(query + part, key, part, t);
      const bool whole = part + Width == this->relation_;
      const Vec<lane> floor = splat<lane>(whole ? floor_ : kNone);
      product<Rows, Columns>(
          t, Width, static_cast<const float *>(args_.w1t) + part * Columns, Columns, Width,
          [&](int m, int c) { return load<lane>(start[m] + c); },
          [&](int m, int c, Vec<lane> sum) {
            store<lane>(out + m * Columns + c, at_least<lane>(floor, sum));
          });
      if (whole) break;
      for (int m = 0; m < Rows; m++) begun[m] = out + m * Columns;
      start = begun;
    }
  }

 private:
  template <int Rows, int Columns>
  SAN_INLINE void add_halves(const float *query, const float *const *key,
                             const float *const *start, float *out) const {
    constexpr int lane = lanes_for(Columns);
    for (int c = 0; c < Columns; c += lane) {
      const Vec<lane> own = load<lane>(query + c);
      SAN_UNROLL for (int m = 0; m < Rows; m++) {
        const Vec<lane> sum = load<lane>(start[m] + c) + (own - load<lane>(key[m] + c));
        store<lane>(out + m * Columns + c, at_least<lane>(splat<lane>(floor_), sum));
      }
    }
  }

  template <int Rows, int Columns>
  SAN_INLINE void add_dots(const float *t, const float *const *start, float *out) const {
    constexpr int lane = lanes_for(Columns);
    for (int c = 0; c < Columns; c += lane) {
      const Vec<lane> weight = load<lane>(static_cast<const float *>(args_.w1t) + c);
      SAN_UNROLL for (int m = 0; m < Rows; m++) {
        const Vec<lane> sum = load<lane>(start[m] + c) + weight * t[m];
        store<lane>(out + m * Columns + c, at_least<lane>(splat<lane>(floor_), sum));
      }
    }
  }

  // What the relation compares channel by channel: Width channels from `part` on.
  template <int Rows>
  SAN_INLINE void compare(const float *query, const float *const *key, int part, float *t) const {
    for (int r = 0; r < Width; r += kLane) {
      const Vec<kLane> own = load<kLane>(query + r);
      if (args_.delta == kHadamard) {
        const Vec<kLane> offset = load<kLane>(static_cast<const float *>(args_.offset) + part + r);
        SAN_UNROLL for (int m = 0; m < Rows; m++)
          store<kLane>(t + m * Width + r,
                       relu<kLane>(own * load<kLane>(key[m] + part + r) + offset));
      } else {
        SAN_UNROLL for (int m = 0; m < Rows; m++)
          store<kLane>(t + m * Width + r, relu<kLane>(own - load<kLane>(key[m] + part + r)));
      }
    }
  }

  // The only number that a dot product leaves of each pair.
  template <int Rows>
  SAN_INLINE void dots(const float *query, const float *const *key, float *t) const {
    const float offset = *static_cast<const float *>(args_.offset);
    Vec<kLane> sum[Rows] = {};
    for (int r = 0; r < this->relation_; r += kLane) {
      const Vec<kLane> own = load<kLane>(query + r);
      SAN_UNROLL for (int m = 0; m < Rows; m++) sum[m] += own * load<kLane>(key[m] + r);
    }
    SAN_UNROLL for (int m = 0; m < Rows; m++) {
      const float found = lanes_sum<kLane>(sum[m]) + offset;
      t[m] = 0.0f > found ? 0.0f : found;
    }
  }

  const float floor_;  // what the layer's values are raised to: 0 where a relu follows
};

}  // namespace san
