// Pairwise attention of kLanes pixels at a time.
#pragma once
#include "planar_rows.h"

namespace san::planar {

// The hidden layer's initial value for kLanes pixels: planes by (neighbour, hidden channel), with
// the displacement of the neighbour that reflection really leads to.
template <class Map> class Positions {
 public:
  static constexpr int kPlanes = kNear * kRelation;

  Positions(const PairwiseArgs &args, const Map &map)
      : map_(map), table_(static_cast<const float *>(args.table)), own_(args.table_per_pixel) {
    const int64_t groups = (map.width + kLanes - 1) / kLanes;
    stride_ = own_ ? groups * kLanes : kLanes;
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

  int64_t stride() const { return stride_; }

  const float *at(int64_t y, int64_t x) const {
    if (own_) return planes_ + y * kPlanes * stride_ + x;
    const int64_t last = (map_.width - 1) / kLanes;
    return planes_ + (kind(y, map_.height - 1) * kSide + kind(x / kLanes, last)) * kPlanes * kLanes;
  }

 private:
  // The first, any middle and the last of 0..last: one table serves each, and `sample` is one
  // of the positions served.
  static int64_t kind(int64_t i, int64_t last) { return i == 0 ? 0 : i == last ? 2 : 1; }
  static int64_t sample(int64_t kind, int64_t last, int64_t middle) {
    return kind == 0 ? 0 : kind == 2 ? last : std::min(middle, last);
  }

  int64_t entry(int near, int64_t y, int64_t x) const {
    const int64_t to_y = y + near / kSide - 1, to_x = x + near % kSide - 1;
    if (!map_.reflected && (!map_.inside(to_y) || to_x < 0 || to_x >= map_.width)) return kNear;
    return (reflect(to_y, map_.height) - y + 1) * kSide + reflect(to_x, map_.width) - x + 1;
  }

  void fill(int64_t y, int64_t first, float *planes) const {
    for (int64_t x = first; x < first + kLanes; x++)
      for (int near = 0; near < kNear; near++)
        for (int r = 0; r < kRelation; r++)
          planes[(near * kRelation + r) * stride_ + x - first] =
              x < map_.width ? value(y, x, entry(near, y, x), r) : 0.0f;
  }

  float value(int64_t y, int64_t x, int64_t entry, int r) const {
    const int64_t pixel = own_ ? y * map_.width + x : 0;
    return table_[(pixel * (kNear + 1) + entry) * kRelation + r];
  }

  const Map &map_;
  const float *table_;
  bool own_;
  int64_t stride_;
  float *planes_;
};

template <class Map> class Pairwise {
 public:
  static constexpr int kAlpha = kOwn, kGradRelation = kAlpha + kNear * kGroups;
  static constexpr int kPlanes = kGradRelation + kNear * kRelation;

  explicit Pairwise(const PairwiseArgs &args, const Map &map)
      : map_(map), positions_(args, map) {
    memcpy(w1_, args.w1, sizeof w1_);
    memcpy(w2_, args.w2, sizeof w2_);
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
    uint16_t hidden[kNear][kRelation];
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
      SAN_UNROLL for (int k = 0; k < kRelation; k++) {
        const Pixels gap = query[k] - at_plane(near, kKey + k, map_.plane());
        const Pixels kept = keep_positive<kLanes>(grad[k], gap);
        sum[k] += kept;
        store<kLanes>(source + (kGradRelation + n * kRelation + k) * map_.plane() + x, kept);
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

  template <class Note>
  SAN_INLINE void logits(const Pixels (&query)[kRelation], const float *row, int i,
                         const float *initial, Pixels (*logit)[kGroups],
                         const Note &note) const {
    Pixels relation[kSide][kRelation];
    SAN_UNROLL for (int j = 0; j < kSide; j++)
      SAN_UNROLL for (int k = 0; k < kRelation; k++)
        relation[j][k] = relu<kLanes>(query[k] - at_plane(row + j - 1, kKey + k, map_.plane()));
    Pixels sum[kSide][kGroups]{};
    SAN_UNROLL for (int r = 0; r < kRelation; r++)
      SAN_UNROLL for (int j = 0; j < kSide; j++) {
        const int near = i * kSide + j;
        Pixels hidden = at_plane(initial, near * kRelation + r, positions_.stride());
        SAN_UNROLL for (int k = 0; k < kRelation; k++) hidden += w1_[r][k] * relation[j][k];
        note(near, r, hidden);
        hidden = relu<kLanes>(hidden);
        SAN_UNROLL for (int g = 0; g < kGroups; g++) sum[j][g] += w2_[g][r] * hidden;
      }
    SAN_UNROLL for (int j = 0; j < kSide; j++)
      SAN_UNROLL for (int g = 0; g < kGroups; g++) logit[j][g] = sum[j][g];
  }

  SAN_INLINE void relation_gradient(const Pixels (&slope)[kGroups], const uint16_t *hidden,
                                    Pixels (&grad)[kRelation]) const {
    SAN_UNROLL for (int k = 0; k < kRelation; k++) grad[k] = Pixels{};
    SAN_UNROLL for (int r = 0; r < kRelation; r++) {
      const Pixels sum = w2_[0][r] * slope[0] + w2_[1][r] * slope[1];
      const Pixels kept = keep_bits<kLanes>(sum, hidden[r]);
      SAN_UNROLL for (int k = 0; k < kRelation; k++) grad[k] += w1_[r][k] * kept;
    }
  }

  const Map &map_;
  Positions<Map> positions_;
  float w1_[kRelation][kRelation];
  float w2_[kGroups][kRelation];
};

}  // namespace san::planar
