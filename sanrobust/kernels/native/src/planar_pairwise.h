// Pairwise attention of kLanes pixels at a time.
#pragma once
#include "planar_rows.h"

namespace san::planar {

// The first layer's initial value for kLanes pixels: planes by (neighbour, channel), with the
// displacement of the neighbour that reflection really leads to. By place they are planes by
// channel alone, of the map and its margin.
template <class Map> class Positions {
 public:
  Positions(const PairwiseArgs &args, const Map &map)
      : map_(map), table_(static_cast<const float *>(args.table)), hidden_(args.hidden),
        by_place_(args.table_by_place), own_(args.table_per_pixel) {
    const int64_t groups = (map.width + kLanes - 1) / kLanes;
    if (by_place_) {
      lay_out(groups * kLanes + kSide - 1);
      return;
    }
    pitch_ = stride_ = own_ ? groups * kLanes : kLanes;
    const int64_t rows = own_ ? map.height : kSide, columns = own_ ? groups : kSide;
    planes_ = scratch<float>(1, static_cast<size_t>(rows * columns * kPlanes * kLanes));
    parallel_for(rows, own_ ? args.threads : 1, [&](int64_t row) {
      for (int64_t column = 0; column < columns; column++)
        fill(own_ ? row : sample(row, map.height - 1, 1),
             own_ ? column * kLanes : sample(column, groups - 1, 1) * kLanes,
             planes_ + (own_ ? row * kPlanes * stride_ + column * kLanes
                             : (row * kSide + column) * kPlanes * kLanes));
    });
  }

  // From one channel to the next, and from what at() returns to the planes of a neighbour.
  int64_t stride() const { return stride_; }
  template <bool kAny> int64_t near(int n) const {
    if (kAny && by_place_) return n / kSide * pitch_ + n % kSide;
    return n * kHidden * stride_;
  }

  const float *at(int64_t y, int64_t x) const {
    if (by_place_) return planes_ + y * pitch_ + x;
    if (own_) return planes_ + y * kPlanes * stride_ + x;
    const int64_t last = (map_.width - 1) / kLanes;
    return planes_ + (kind(y, map_.height - 1) * kSide + kind(x / kLanes, last)) * kPlanes * kLanes;
  }

 private:
  static constexpr int kPlanes = kNear * kHidden;

  // The first, any middle and the last of 0..last: one table serves each, and `sample` is one
  // of the positions served.
  static int64_t kind(int64_t i, int64_t last) { return i == 0 ? 0 : i == last ? 2 : 1; }
  static int64_t sample(int64_t kind, int64_t last, int64_t middle) {
    return kind == 0 ? 0 : kind == 2 ? last : std::min(middle, last);
  }

  bool outside(int64_t y, int64_t x) const {
    return !map_.reflected && (!map_.inside(y) || x < 0 || x >= map_.width);
  }

  int64_t entry(int near, int64_t y, int64_t x) const {
    const int64_t to_y = y + near / kSide - 1, to_x = x + near % kSide - 1;
    if (outside(to_y, to_x)) return kNear;
    return (reflect(to_y, map_.height) - y + 1) * kSide + reflect(to_x, map_.width) - x + 1;
  }

  void fill(int64_t y, int64_t first, float *planes) const {
    for (int64_t x = first; x < first + kLanes; x++)
      for (int near = 0; near < kNear; near++)
        for (int r = 0; r < hidden_; r++)
          planes[(near * kHidden + r) * stride_ + x - first] =
              x < map_.width ? value(y, x, entry(near, y, x), r) : 0.0f;
  }

  float value(int64_t y, int64_t x, int64_t entry, int r) const {
    const int64_t pixel = own_ ? y * map_.width + x : 0;
    return table_[(pixel * (kNear + 1) + entry) * hidden_ + r];
  }

  void lay_out(int64_t pitch) {
    pitch_ = pitch;
    stride_ = (map_.height + kSide - 1) * pitch;
    planes_ = scratch<float>(1, static_cast<size_t>(hidden_ * stride_));
    std::fill_n(planes_, hidden_ * stride_, 0.0f);
    for (int64_t y = -1; y <= map_.height; y++)
      for (int64_t x = -1; x <= map_.width; x++) {
        const int64_t place = outside(y, x) ? map_.height * map_.width
                                            : reflect(y, map_.height) * map_.width +
                                                  reflect(x, map_.width);
        for (int r = 0; r < hidden_; r++)
          planes_[r * stride_ + (y + 1) * pitch + x + 1] = table_[place * hidden_ + r];
      }
  }

  const Map &map_;
  const float *table_;
  const int hidden_;
  const bool by_place_, own_;  // own: planes for every pixel
  int64_t pitch_, stride_;
  float *planes_;
};

// Any: delta, mapping and table are known when it runs; else they are the published ones.
template <class Map, bool kAny> class Pairwise {
  static constexpr int kRelation = Map::kRelation, kMerged = Map::kMerged, kKey = Map::kKey;
  static constexpr int kValue = Map::kValue;

 public:
  static constexpr int kAlpha = kOwn<Map>, kGradRelation = kAlpha + kNear * kGroups;
  static constexpr int kPlanes = kGradRelation + kNear * kRelation;

  explicit Pairwise(const PairwiseArgs &args, const Map &map)
      : map_(map), positions_(args, map), delta_(args.delta), mapping_(args.mapping) {
    const int compared = delta_ == kDot ? 1 : kRelation;
    const auto *w1 = static_cast<const float *>(args.w1);
    for (int r = 0; r < args.hidden; r++)
      for (int k = 0; k < compared; k++)
        w1_[r][k] = delta_ == kConcatenation ? float(r == k) : w1[r * compared + k];
    if (args.offset) memcpy(offset_, args.offset, static_cast<size_t>(compared) * 4);
    if (mapping_ != kL) memcpy(w2_, args.w2, sizeof w2_);
    if (mapping_ != kLRLRL) return;
    memcpy(w_mid_, args.w_mid, sizeof w_mid_);
    memcpy(b_mid_, args.b_mid, sizeof b_mid_);
  }

  // Attention weights of the pixels x.. of row y.
  SAN_INLINE void weigh(const float *const (&rows)[kSide], int64_t y, int64_t x,
                        Weights &weights) const {
    attend(rows, y, x, weights, [](int, int, Pixels) {});
  }

  // Gradients of the pixels x.. of row y that the gathering needs, into the planes of `source`.
  SAN_INLINE void trace(const float *const (&rows)[kSide], int64_t y, int64_t x,
                        float *source) const {
    Weights alpha, slope;
    uint16_t hidden[kNear][2 * kHidden];
    attend(rows, y, x, alpha, [&](int near, int r, Pixels h) {
      hidden[near][r] = static_cast<uint16_t>(positive_bits<kLanes>(h));
    });
    value_slopes(map_, rows, x, source, slope);
    SAN_UNROLL for (int g = 0; g < kGroups; g++) {
      Pixels mean{};
      SAN_UNROLL for (int n = 0; n < kNear; n++) mean += alpha[n][g] * slope[n][g];
      SAN_UNROLL for (int n = 0; n < kNear; n++) {
        store<kLanes>(source + (kAlpha + n * kGroups + g) * map_.plane() + x, alpha[n][g]);
        slope[n][g] = alpha[n][g] * (slope[n][g] - mean);
      }
    }
    Pixels query[kRelation], sum[kRelation]{};
    load_query(rows[1] + x, query);
    each_near(rows, x, [&](int n, const float *near) {
      Pixels grad[kRelation];
      relation_gradient(slope[n], hidden[n], grad);
      if (delta() == kDot) {
        const Pixels one = keep_positive<kLanes>(grad[0], dot(query, near));
        SAN_UNROLL for (int k = 0; k < kRelation; k++) grad[k] = one;
      }
      SAN_UNROLL for (int k = 0; k < kRelation; k++) {
        const Pixels key = at_plane(near, kKey + k, map_.plane());
        Pixels to_query = grad[k], from_key = grad[k];
        if (delta() == kSubtraction)
          to_query = from_key = keep_positive<kLanes>(grad[k], query[k] - key);
        if (delta() == kHadamard || delta() == kDot) {
          if (delta() == kHadamard)
            to_query = keep_positive<kLanes>(grad[k], query[k] * key + offset_[k]);
          from_key = to_query * -query[k];
          to_query *= key;
        }
        sum[k] += to_query;
        store<kLanes>(source + (kGradRelation + n * kRelation + k) * map_.plane() + x, from_key);
      }
    });
    SAN_UNROLL for (int k = 0; k < kRelation; k++)
      store<kLanes>(source + (kGradQuery + k) * map_.plane() + x, sum[k]);
  }

  // Adds what neighbour n of the pixels at `source` passes to the pixels `grad` belongs to.
  template <class Keep>
  SAN_INLINE void gather(int n, const float *source, const Pixels (&)[kRelation],
                         const Keep &keep, Pixels (&grad)[kMerged]) const {
    Pixels alpha[kGroups];
    SAN_UNROLL for (int g = 0; g < kGroups; g++)
      alpha[g] = keep(at_plane(source, kAlpha + n * kGroups + g, map_.plane()));
    SAN_UNROLL for (int k = 0; k < kRelation; k++)
      grad[kKey + k] -= keep(at_plane(source, kGradRelation + n * kRelation + k, map_.plane()));
    SAN_UNROLL for (int c = 0; c < kValues; c++)
      grad[kValue + c] += alpha[c % kGroups] * at_plane(source, kGradY + c, map_.plane());
  }

 private:
  SAN_INLINE void load_query(const float *row, Pixels (&query)[kRelation]) const {
    SAN_UNROLL for (int k = 0; k < kRelation; k++) query[k] = at_plane(row, k, map_.plane());
  }

  // One row of neighbours at a time, so that a weight once loaded serves three of them.
  template <class Note>
  SAN_INLINE void attend(const float *const (&rows)[kSide], int64_t y, int64_t x,
                         Weights &alpha, const Note &note) const {
    Pixels query[kRelation];
    load_query(rows[1] + x, query);
    const float *initial = positions_.at(y, x);
    for (int i = 0; i < kSide; i++)
      logits(query, rows[i] + x, i, initial, &alpha[i * kSide], note);
    SAN_UNROLL for (int g = 0; g < kGroups; g++) {
      Pixels largest = alpha[0][g], sum{};
      SAN_UNROLL for (int n = 1; n < kNear; n++) largest = at_least<kLanes>(largest, alpha[n][g]);
      SAN_UNROLL for (int n = 0; n < kNear; n++) {
        alpha[n][g] = exp_nonpositive<kLanes>(alpha[n][g] - largest);
        sum += alpha[n][g];
      }
      const Pixels inverse = 1.0f / sum;
      SAN_UNROLL for (int n = 0; n < kNear; n++) alpha[n][g] *= inverse;
    }
  }

  SAN_INLINE int delta() const { return kAny ? delta_ : int{kSubtraction}; }
  SAN_INLINE int mapping() const { return kAny ? mapping_ : int{kLRL}; }

  SAN_INLINE Pixels dot(const Pixels (&query)[kRelation], const float *near) const {
    Pixels sum = splat<kLanes>(offset_[0]);
    SAN_UNROLL for (int k = 0; k < kRelation; k++)
      sum += query[k] * at_plane(near, kKey + k, map_.plane());
    return sum;
  }

  // What the first layer takes; of a concatenation it is the layer itself, of a dot product the
  // first number alone.
  SAN_INLINE void compare(const Pixels (&query)[kRelation], const float *near,
                          Pixels (&relation)[kRelation]) const {
    if (delta() == kDot) {
      SAN_UNROLL for (int k = 0; k < kRelation; k++) relation[k] = Pixels{};
      relation[0] = relu<kLanes>(dot(query, near));
      return;
    }
    SAN_UNROLL for (int k = 0; k < kRelation; k++) {
      const Pixels key = at_plane(near, kKey + k, map_.plane());
      if (delta() == kSubtraction) relation[k] = relu<kLanes>(query[k] - key);
      else if (delta() == kHadamard) relation[k] = relu<kLanes>(query[k] * key + offset_[k]);
      else relation[k] = query[k] - key;
    }
  }

  template <class Note>
  SAN_INLINE void logits(const Pixels (&query)[kRelation], const float *row, int i,
                         const float *initial, Pixels (*logit)[kGroups],
                         const Note &note) const {
    Pixels relation[kSide][kRelation];
    SAN_UNROLL for (int j = 0; j < kSide; j++) compare(query, row + j - 1, relation[j]);
    const auto first = [&](int j, int r) {
      Pixels hidden = at_plane(initial + positions_.template near<kAny>(i * kSide + j), r,
                               positions_.stride());
      SAN_UNROLL for (int k = 0; k < kRelation; k++) hidden += w1_[r][k] * relation[j][k];
      return hidden;
    };
    Pixels sum[kSide][kGroups]{};
    if (mapping() == kLRL) {
      SAN_UNROLL for (int r = 0; r < kHidden; r++)
        SAN_UNROLL for (int j = 0; j < kSide; j++) {
          Pixels hidden = first(j, r);
          note(i * kSide + j, r, hidden);
          hidden = relu<kLanes>(hidden);
          SAN_UNROLL for (int g = 0; g < kGroups; g++) sum[j][g] += w2_[g][r] * hidden;
        }
    } else if (mapping() == kL) {
      SAN_UNROLL for (int j = 0; j < kSide; j++)
        SAN_UNROLL for (int g = 0; g < kGroups; g++) sum[j][g] = first(j, g);
    } else {
      SAN_UNROLL for (int j = 0; j < kSide; j++) {
        Pixels hidden[kHidden];
        SAN_UNROLL for (int r = 0; r < kHidden; r++) {
          hidden[r] = first(j, r);
          note(i * kSide + j, r, hidden[r]);
          hidden[r] = relu<kLanes>(hidden[r]);
        }
        SAN_UNROLL for (int m = 0; m < kHidden; m++) {
          Pixels second = splat<kLanes>(b_mid_[m]);
          SAN_UNROLL for (int r = 0; r < kHidden; r++) second += w_mid_[m][r] * hidden[r];
          note(i * kSide + j, kHidden + m, second);
          second = relu<kLanes>(second);
          SAN_UNROLL for (int g = 0; g < kGroups; g++) sum[j][g] += w2_[g][m] * second;
        }
      }
    }
    SAN_UNROLL for (int j = 0; j < kSide; j++)
      SAN_UNROLL for (int g = 0; g < kGroups; g++) logit[j][g] = sum[j][g];
  }

  // The gradient of what the first layer takes.
  SAN_INLINE void relation_gradient(const Pixels (&slope)[kGroups], const uint16_t *hidden,
                                    Pixels (&grad)[kRelation]) const {
    SAN_UNROLL for (int k = 0; k < kRelation; k++) grad[k] = Pixels{};
    const auto pass = [&](int r, Pixels kept) {
      SAN_UNROLL for (int k = 0; k < kRelation; k++) grad[k] += w1_[r][k] * kept;
    };
    const auto last = [&](int r, const uint16_t *open) {
      return keep_bits<kLanes>(w2_[0][r] * slope[0] + w2_[1][r] * slope[1], open[r]);
    };
    if (mapping() == kLRL) {
      SAN_UNROLL for (int r = 0; r < kHidden; r++) pass(r, last(r, hidden));
    } else if (mapping() == kL) {
      SAN_UNROLL for (int g = 0; g < kGroups; g++) pass(g, slope[g]);
    } else {
      Pixels second[kHidden];
      SAN_UNROLL for (int m = 0; m < kHidden; m++) second[m] = last(m, hidden + kHidden);
      SAN_UNROLL for (int r = 0; r < kHidden; r++) {
        Pixels sum{};
        SAN_UNROLL for (int m = 0; m < kHidden; m++) sum += w_mid_[m][r] * second[m];
        pass(r, keep_bits<kLanes>(sum, hidden[r]));
      }
    }
  }

  const Map &map_;
  Positions<Map> positions_;
  const int delta_, mapping_;
  float w1_[kHidden][kRelation]{}, offset_[kRelation]{};
  float w2_[kGroups][kHidden]{}, w_mid_[kHidden][kHidden]{}, b_mid_[kHidden]{};
};

}  // namespace san::planar
