// Patchwise attention of kLanes pixels at a time.
#pragma once
#include "planar_rows.h"

namespace san::planar {

template <class Map> class Patchwise {
 public:
  static constexpr int kRelation = Map::kRelation, kMerged = Map::kMerged, kKey = Map::kKey;
  static constexpr int kValue = Map::kValue;
  static constexpr int kHidden = kPatchwiseHidden, kState = kOwn<Map>;
  static constexpr int kGradHidden = kState + kHidden;
  static constexpr int kPlanes = kGradHidden + kHidden;

  explicit Patchwise(const PatchwiseArgs &args, const Map &map) : map_(map) {
    memcpy(scale_, args.key_scale, sizeof scale_);
    memcpy(shift_, args.key_shift, sizeof shift_);
    memcpy(w1_, args.w1, sizeof w1_);
    memcpy(b1_, args.b1, sizeof b1_);
    memcpy(w2_, args.w2, sizeof w2_);
    memcpy(b2_, args.b2, sizeof b2_);
  }

  SAN_INLINE void weigh(const float *const (&rows)[kSide], int64_t, int64_t x,
                        Weights &weights) const {
    Pixels hidden[kHidden];
    state(rows, x, hidden);
    SAN_UNROLL for (int s = 0; s < kHidden; s++) hidden[s] = relu<kLanes>(hidden[s]);
    SAN_UNROLL for (int n = 0; n < kNear; n++)
      SAN_UNROLL for (int g = 0; g < kGroups; g++) weights[n][g] = weight(n, g, hidden);
  }

  SAN_INLINE void trace(const float *const (&rows)[kSide], int64_t, int64_t x,
                        float *source) const {
    Weights slope;
    value_slopes(map_, rows, x, source, slope);
    Pixels hidden[kHidden], grad[kHidden]{};
    state(rows, x, hidden);
    SAN_UNROLL for (int n = 0; n < kNear; n++)
      SAN_UNROLL for (int g = 0; g < kGroups; g++)
        SAN_UNROLL for (int s = 0; s < kHidden; s++)
          grad[s] += w2_[n * kGroups + g][s] * slope[n][g];
    SAN_UNROLL for (int s = 0; s < kHidden; s++) {
      grad[s] = keep_positive<kLanes>(grad[s], hidden[s]);
      store<kLanes>(source + (kState + s) * map_.plane() + x, relu<kLanes>(hidden[s]));
      store<kLanes>(source + (kGradHidden + s) * map_.plane() + x, grad[s]);
    }
    SAN_UNROLL for (int k = 0; k < kRelation; k++) {
      const Pixels sum = w1_[0][k] * grad[0] + w1_[1][k] * grad[1];
      store<kLanes>(source + (kGradQuery + k) * map_.plane() + x,
               keep_positive<kLanes>(sum, at_plane(rows[1] + x, k, map_.plane())));
    }
  }

  template <class Keep>
  SAN_INLINE void gather(int n, const float *source, const Pixels (&key)[kRelation],
                         const Keep &keep, Pixels (&grad)[kMerged]) const {
    Pixels hidden[kHidden], slope[kHidden];
    SAN_UNROLL for (int s = 0; s < kHidden; s++) {
      hidden[s] = at_plane(source, kState + s, map_.plane());
      slope[s] = keep(at_plane(source, kGradHidden + s, map_.plane()));
    }
    SAN_UNROLL for (int k = 0; k < kRelation; k++) {
      const int column = (1 + n) * kRelation + k;
      const Pixels sum = w1_[0][column] * slope[0] + w1_[1][column] * slope[1];
      const Pixels gate = key[k] * scale_[n][k] + shift_[n][k];
      grad[kKey + k] += keep_positive<kLanes>(sum * scale_[n][k], gate);
    }
    Pixels weights[kGroups];
    SAN_UNROLL for (int g = 0; g < kGroups; g++) weights[g] = keep(weight(n, g, hidden));
    SAN_UNROLL for (int c = 0; c < kValues; c++)
      grad[kValue + c] += weights[c % kGroups] * at_plane(source, kGradY + c, map_.plane());
  }

 private:
  SAN_INLINE Pixels weight(int n, int g, const Pixels (&hidden)[kHidden]) const {
    const int row = n * kGroups + g;
    return b2_[row] + w2_[row][0] * hidden[0] + w2_[row][1] * hidden[1];
  }

  // The hidden layer before its relu.
  SAN_INLINE void state(const float *const (&rows)[kSide], int64_t x,
                        Pixels (&hidden)[kHidden]) const {
    SAN_UNROLL for (int s = 0; s < kHidden; s++) hidden[s] = splat<kLanes>(b1_[s]);
    SAN_UNROLL for (int k = 0; k < kRelation; k++) {
      const Pixels query = relu<kLanes>(at_plane(rows[1] + x, k, map_.plane()));
      SAN_UNROLL for (int s = 0; s < kHidden; s++) hidden[s] += w1_[s][k] * query;
    }
    for (int i = 0; i < kSide; i++) {
      Pixels part[kHidden]{};
      SAN_UNROLL for (int j = 0; j < kSide; j++)
        SAN_UNROLL for (int k = 0; k < kRelation; k++) {
          const int n = i * kSide + j, column = (1 + n) * kRelation + k;
          const Pixels raw = at_plane(rows[i] + x + j - 1, kKey + k, map_.plane());
          const Pixels key = relu<kLanes>(raw * scale_[n][k] + shift_[n][k]);
          SAN_UNROLL for (int s = 0; s < kHidden; s++) part[s] += w1_[s][column] * key;
        }
      SAN_UNROLL for (int s = 0; s < kHidden; s++) hidden[s] += part[s];
    }
  }

  const Map &map_;
  float scale_[kNear][kRelation], shift_[kNear][kRelation];
  float w1_[kHidden][(1 + kNear) * kRelation], b1_[kHidden];
  float w2_[kNear * kGroups][kHidden], b2_[kNear * kGroups];
};

}  // namespace san::planar
