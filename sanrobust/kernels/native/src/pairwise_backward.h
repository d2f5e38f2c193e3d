// The gradients of pairwise attention.
#pragma once
#include "learned.h"
#include "pairwise_layer.h"

namespace san {

// Needs no products but those of the gradient: forward kept the attention weights and which
// hidden units were positive. Gradients of keys and values are scattered into the rows of a band;
// what falls outside the band waits in its halo until all bands are done.
//
// Where the mapping is trained, too, its products are made once more for the gradients of its
// matrices. And of the moments of the first layer that is all there is, with gradients that the
// layer itself gives in place of those of the logits.
template <int Width> class PairwiseBackward : PairwiseLayer<Width> {
  using Base = PairwiseLayer<Width>;
  using Map = PairwiseMap<Width>;
  using Shape = PairwiseShape<Width>;
  using Base::args_;
  using Base::height_;
  using Base::reach_;
  using Base::relation_;
  using Base::step_;
  using Base::width_;
  static constexpr int kGroups = Shape::kGroups, kChannels = Shape::kChannels;
  static constexpr int kLane = Shape::kLane, kGroupLane = Shape::kGroupLane;
  // Neighbouring pixels treated together, so that a value and its gradient are loaded once for
  // all of them; few where a pixel alone fills the cache.
  static constexpr int kStrip = std::max(1, std::min(8, 512 / Width));

 public:
  explicit PairwiseBackward(const PairwiseArgs &args)
      : Base(args), bands_(bands(args)), row_(args.width * this->step_),
        grad_qkv_(static_cast<float *>(args.grad_qkv)) {}

  void run() const {
    const int64_t halo = bands_ > 1 ? 2 * reach_ * row_ : 0;
    // So many images at a time keep the threads busy and bound the halos.
    const int64_t most = (8 * static_cast<int64_t>(args_.threads) + bands_ - 1) / bands_;
    const int64_t together = std::max<int64_t>(1, std::min(args_.images, most));
    float *halos = scratch<float>(0, static_cast<size_t>(together * bands_ * halo));
    Learned<float> learned({{args_.grad_w1t, Width * Width},
                            {args_.grad_w2t, Width * kGroups},
                            {args_.grad_table, (this->positions_ + 1) * Width}},
                           together * bands_);
    for (int64_t image = 0; image < args_.images; image += together) {
      const int64_t tasks = std::min(together, args_.images - image) * bands_;
      parallel_for(tasks, args_.threads, [&](int64_t task) {
        band(image + task / bands_, static_cast<int>(task % bands_), halos + task * halo,
             learned ? learned.of(task) : nullptr);
      });
      if (halo)
        parallel_for(tasks, args_.threads, [&](int64_t task) {
          join(image + task / bands_, static_cast<int>(task % bands_), halos + task * halo, halo);
        });
      learned.add(tasks);
    }
    learned.write();
  }

 private:
  // Adjacent pixels of one row, with what the products below need of them.
  struct Strip {
    int64_t image;
    int y, x, count;
    const Reach *row;
    float *learned;                     // the sums of gradients of w1t, w2t and table, or null
    float *target[2 * kMostReach + 1];  // gradient of each row in reach, at column 0
    alignas(64) float grad[kStrip * kChannels];   // of y
    alignas(64) float inner[kStrip * kGroups];    // sum over a group's channels of grad * y
    alignas(64) float logit[kStrip * kMostNeighbours * kGroups];  // gradient of the logits
  };

  // A band must be at least as high as its neighbours' halos.
  static int bands(const PairwiseArgs &args) {
    int count = band_count(args.height);
    while (count > 1 && args.height / count < args.footprint / 2) count--;
    return count;
  }
  int start(int band) const { return static_cast<int>(args_.height * band / bands_); }

  // Row y of the gradient: the band's own, or one of the halo's (above, then below).
  float *target(int64_t image, int band, int y, float *halo) const {
    const int first = start(band), end = start(band + 1);
    if (y < first) return halo + (y - first + reach_) * row_;
    if (y >= end) return halo + (y - end + reach_) * row_;
    return grad_qkv_ + (image * height_ + y) * row_;
  }

  void band(int64_t image, int band, float *halo, float *learned) const {
    Strip strip;
    strip.image = image;
    strip.learned = learned;
    int cleared = std::max(0, start(band) - reach_);
    for (int y = start(band); y < start(band + 1); y++) {
      strip.y = y;
      strip.row = &this->rows_[static_cast<size_t>(y)];
      for (; cleared <= strip.row->last; cleared++)
        memset(target(image, band, cleared, halo), 0, static_cast<size_t>(row_) * 4);
      for (int j = strip.row->first; j <= strip.row->last; j++)
        strip.target[j - strip.row->first] = target(image, band, j, halo);
      for (int x = 0; x < width_; x += kStrip) {
        strip.x = x;
        strip.count = std::min(kStrip, width_ - x);
        treat(strip);
      }
    }
  }

  // Adds the neighbouring bands' halos to the rows of this band, the upper one's first.
  void join(int64_t image, int band, const float *halo, int64_t size) const {
    const int first = start(band), end = start(band + 1);
    if (band > 0)
      for (int y = first; y < std::min(end, first + reach_); y++)
        add(grad_qkv_ + (image * height_ + y) * row_, halo - size + (y - first + reach_) * row_);
    if (band + 1 < bands_)
      for (int y = std::max(first, end - reach_); y < end; y++)
        add(grad_qkv_ + (image * height_ + y) * row_, halo + size + (y - end + reach_) * row_);
  }

  void add(float *row, const float *halo) const {
    for (int x = 0; x < width_; x++, row += step_, halo += step_)
      for (int c = relation_; c < step_; c += kLane)
        store<kLane>(row + c, load<kLane>(row + c) + load<kLane>(halo + c));
  }

  void treat(Strip &strip) const {
    if (!args_.slope) {
      for (int i = 0; i < strip.count; i++) start_pixel(strip, i);
      for (int s = 0; s < kGroups; s += kGroupLane) values(strip, s);
    }
    Keys keys;
    memset(keys.nowhere, 0, static_cast<size_t>(relation_) * 4);
    for (int i = 0; i < strip.count; i++) {
      if (i > 0 && this->follows(strip.x + i)) shift(keys);
      else find(keys, strip, strip.x + i);
      strip.learned ? learn(strip, i, keys) : relations(strip, i, keys);
    }
  }

  int64_t index(const Strip &strip, int i) const {
    return (strip.image * height_ + strip.y) * width_ + strip.x + i;
  }

  // Undoes scale, shift and relu, and starts what all of a pixel's logits share.
  void start_pixel(Strip &strip, int i) const {
    const int64_t place = index(strip, i) * kChannels;
    const float *from = static_cast<const float *>(args_.grad) + place;
    const float *y = static_cast<const float *>(args_.y) + place;
    const float *scale = static_cast<const float *>(args_.scale);
    const float *shift = static_cast<const float *>(args_.shift);
    for (int s = 0; s < kGroups; s += kGroupLane) {
      Vec<kLane> sum{};
      SAN_UNROLL for (int v = 0; v < Shape::kBundle; v++) {
        const int c = Shape::channel(s, v);
        __builtin_prefetch(from + c + kStrip * kChannels, 0, 2);
        __builtin_prefetch(y + c + kStrip * kChannels, 0, 2);
        Vec<kLane> grad = load<kLane>(from + c);
        const Vec<kLane> out = load<kLane>(y + c);
        if (scale) {
          const Vec<kLane> factor = load<kLane>(scale + c);
          grad = keep_positive<kLane>(grad * factor, out * factor + load<kLane>(shift + c));
        }
        store<kLane>(strip.grad + i * kChannels + c, grad);
        sum += grad * out;
      }
      store<kGroupLane>(strip.inner + i * kGroups + s, Shape::groups_sum(sum));
    }
  }

  // The groups from s on: value gradients, and logit gradients from those of the weights.
  void values(Strip &strip, int s) const {
    const int first = std::max(0, strip.x - reach_);
    const int last = std::min(width_ - 1, strip.x + strip.count - 1 + reach_);
    for (int j = 0; j < strip.row->count(); j++) {
      View view[kStrip];
      for (int i = 0; i < strip.count; i++) {
        const Reach &column = this->columns_[static_cast<size_t>(strip.x + i)];
        const int slot = j * column.count() - column.first;
        view[i] = {alpha(strip, i) + slot * kGroups + s, logit(strip, i) + slot * kGroups + s};
      }
      for (int x = first; x <= last; x++) value(strip, view, s, j, x);
    }
    for (int i = 0; i < strip.count; i++) {
      const Reach &column = this->columns_[static_cast<size_t>(strip.x + i)];
      if (!this->outside(*strip.row, column)) continue;
      const int slot = strip.row->count() * column.count() * kGroups + s;
      const Vec<kGroupLane> inner = load<kGroupLane>(strip.inner + i * kGroups + s);
      const Vec<kGroupLane> weight = load<kGroupLane>(alpha(strip, i) + slot);
      store<kGroupLane>(logit(strip, i) + slot, -weight * inner);
    }
  }

  // Where a pixel keeps what it knows of a row's neighbours, as if from column 0 on.
  struct View {
    const float *alpha;
    float *logit;
  };

  const float *alpha(const Strip &strip, int i) const {
    return static_cast<const float *>(args_.alpha) + index(strip, i) * this->positions_ * kGroups;
  }
  float *logit(Strip &strip, int i) const {
    return strip.logit + i * this->positions_ * kGroups;
  }

  // The neighbour in column x of the j-th row in reach, for all pixels that see it.
  SAN_INLINE void value(const Strip &strip, const View *view, int s, int j, int x) const {
    constexpr int bundle = Shape::kBundle;
    const float *value = Map::pixel(strip.image, strip.row->first + j, x) + 2 * relation_;
    float *target = strip.target[j] + x * step_ + 2 * relation_;
    Vec<kLane> sum[bundle], own[bundle];
    SAN_UNROLL for (int v = 0; v < bundle; v++) {
      sum[v] = load<kLane>(target + Shape::channel(s, v));
      own[v] = load<kLane>(value + Shape::channel(s, v));
    }
    // The next strip's weights: too many, and in too odd an order, to arrive by themselves.
    const int ahead = kStrip * this->positions_ * kGroups;
    const int first = std::max(0, x - reach_ - strip.x);
    const int last = std::min(strip.count - 1, x + reach_ - strip.x);
    for (int i = first; i <= last; i++) {
      const float *grad = strip.grad + i * kChannels;
      const float *alpha = view[i].alpha + x * kGroups;
      __builtin_prefetch(alpha + ahead, 0, 2);
      const Vec<kLane> weight = Shape::weights(alpha);
      Vec<kLane> even{}, odd{};
      SAN_UNROLL for (int v = 0; v < bundle; v += 2) {
        const Vec<kLane> a = load<kLane>(grad + Shape::channel(s, v));
        const Vec<kLane> b = load<kLane>(grad + Shape::channel(s, v + 1));
        even += a * own[v];
        odd += b * own[v + 1];
        sum[v] += weight * a;
        sum[v + 1] += weight * b;
      }
      const Vec<kGroupLane> gradient = Shape::groups_sum(even + odd);
      store<kGroupLane>(view[i].logit + x * kGroups,
                        (gradient - load<kGroupLane>(strip.inner + i * kGroups + s)) *
                            load<kGroupLane>(alpha));
    }
    SAN_UNROLL for (int v = 0; v < bundle; v++)
      store<kLane>(target + Shape::channel(s, v), sum[v]);
  }

  // The keys that a pixel sees, and where their gradients gather.
  struct Keys {
    int count, inside;
    const float *key[kMostNeighbours];
    float *target[kMostNeighbours];
    alignas(64) float nowhere[Shape::kMostRelation];  // what is outside the map needs no gradient
  };

  void find(Keys &keys, const Strip &strip, int x) const {
    const Reach &column = this->columns_[static_cast<size_t>(x)];
    int n = 0;
    for (int j = 0; j < strip.row->count(); j++) {
      const float *key = Map::pixel(strip.image, strip.row->first + j, column.first) + relation_;
      float *target = strip.target[j] + column.first * step_ + relation_;
      for (int i = 0; i < column.count(); i++, n++) {
        keys.key[n] = key + i * step_;
        keys.target[n] = target + i * step_;
      }
    }
    keys.inside = n;
    if (this->outside(*strip.row, column)) {
      keys.key[n] = this->kOutside;
      keys.target[n++] = keys.nowhere;
    }
    keys.count = n;
  }

  void shift(Keys &keys) const {
    for (int n = 0; n < keys.inside; n++) {
      keys.key[n] += step_;
      keys.target[n] += step_;
    }
  }

  // From the logits' gradients of pixel i to those of its query and of the keys it sees.
  void relations(Strip &strip, int i, const Keys &keys) const {
    const int64_t place = index(strip, i);
    const float *query = this->qkv_ + place * step_;
    const uint16_t *signs = this->signs(place);
    alignas(64) float sum[Shape::kMostRelation];
    memset(sum, 0, static_cast<size_t>(relation_) * 4);
    each_block<Shape::kRows>(keys.count, [&](int first, auto rows) {
      pairs<decltype(rows)::value>(query, keys.key + first, keys.target + first,
                                   logit(strip, i) + first * kGroups, signs, first, sum);
    });
    memcpy(grad_qkv_ + place * step_, sum, static_cast<size_t>(relation_) * 4);
  }

  // The same, with the gradients of the mapping's matrices.
  void learn(Strip &strip, int i, const Keys &keys) const {
    const int64_t place = index(strip, i);
    const float *query = this->qkv_ + place * step_, *logits = logit(strip, i);
    alignas(64) float t[kMostNeighbours * Width], h[kMostNeighbours * Width];
    alignas(64) float slope[kMostNeighbours * Width];
    memset(grad_qkv_ + place * step_, 0, static_cast<size_t>(relation_) * 4);
    typename Base::Window window;
    Map::find(window, strip.image, strip.y, strip.x + i);
    each_block<Shape::kRows>(keys.count, [&](int first, auto rows) {
      constexpr int count = decltype(rows)::value;
      float *own = slope + first * Width;
      this->template layer<count, Width>(query, window, first, t + first * Width,
                                         h + first * Width, nullptr);
      if (args_.slope)
        moment_slope<count>(h + first * Width, window.times + first, own);
      else
        hidden<count>(logits + first * kGroups, kGroups, args_.w2, kGroups, 0, this->signs(place),
                      first, own);
      spread<kSubtraction, count>(own, query, keys.key + first, keys.target + first,
                                  grad_qkv_ + place * step_);
    });
    float *sums = strip.learned;
    add_products<Width, Width>(t, Width, slope, Width, keys.count, sums, Width);
    sums += Width * Width;
    if (!args_.slope) {
      add_products<Width, kGroups>(h, Width, logits, kGroups, keys.count, sums, kGroups);
      sums += Width * kGroups;
    }
    for (int n = 0; n < keys.count; n++) {
      float *entry = sums + (window.table[n] - static_cast<const float *>(args_.table));
      for (int c = 0; c < Width; c += kLane)
        store<kLane>(entry + c, load<kLane>(entry + c) + load<kLane>(slope + n * Width + c));
    }
  }

  // The gradient of some pairs' first layer that its moments have.
  template <int Rows>
  SAN_INLINE void moment_slope(const float *h, const float *times, float *slope) const {
    const float *at = static_cast<const float *>(args_.slope);
    for (int c = 0; c < Width; c += kLane) {
      const Vec<kLane> constant = load<kLane>(at + c), factor = load<kLane>(at + Width + c);
      const Vec<kLane> centre = load<kLane>(at + 2 * Width + c);
      SAN_UNROLL for (int m = 0; m < Rows; m++)
        store<kLane>(slope + m * Width + c,
                     (constant + factor * (load<kLane>(h + m * Width + c) - centre)) * times[m]);
    }
  }

  template <int Rows>
  SAN_INLINE void pairs(const float *query, const float *const *key, float *const *target,
                        const float *logit, const uint16_t *signs, int first,
                        float *grad_query) const {
    alignas(64) float h[Rows * Width], before[Rows * Width];
    const float *slope = h;  // gradient of the first layer, Width apart
    if (this->layers_ == 0)
      for (int m = 0; m < Rows; m++) memcpy(h + m * Width, logit + m * kGroups, kGroups * 4);
    else
      hidden<Rows>(logit, kGroups, args_.w2, kGroups, this->layers_ - 1, signs, first, h);
    if (this->layers_ == 2) {
      hidden<Rows>(h, Width, args_.w_mid, Width, 0, signs, first, before);
      slope = before;
    }
    switch (args_.delta) {
      case kSubtraction: return spread<kSubtraction, Rows>(slope, query, key, target, grad_query);
      case kHadamard: return spread<kHadamard, Rows>(slope, query, key, target, grad_query);
      case kDot:
        return spread_dots<Rows>(slope, query, key, target,
                                 signs + this->layer_signs(this->layers_) + first, grad_query);
      default: return spread_whole<Rows>(slope, target, grad_query);
    }
  }

  // The gradient of a hidden layer, from that of what a weight matrix makes of it.
  template <int Rows>
  SAN_INLINE void hidden(const float *slope, int stride, const void *weight, int inner, int layer,
                         const uint16_t *signs, int first, float *out) const {
    signs += this->layer_signs(layer) + first * Shape::kSignWords;
    product<Rows, Width>(
        slope, stride, static_cast<const float *>(weight), Width, inner, Nothing<Width>{},
        [&](int m, int c, Vec<kLane> sum) {
          const uint32_t bits = signs[m * Shape::kSignWords + c / 16];
          store<kLane>(out + m * Width + c, keep_bits<kLane>(sum, bits >> c % 16));
        });
  }

  template <Delta kDelta, int Rows>
  SAN_INLINE void spread(const float *slope, const float *query, const float *const *key,
                         float *const *target, float *grad_query) const {
    constexpr int vectors = Width / kLane % 2 == 0 ? 2 : 1;
    for (int c = 0; c < relation_; c += vectors * kLane) {
      Vec<kLane> own[vectors], sum[vectors], offset[vectors];
      SAN_UNROLL for (int v = 0; v < vectors; v++) {
        own[v] = load<kLane>(query + c + v * kLane);
        sum[v] = load<kLane>(grad_query + c + v * kLane);
        if constexpr (kDelta == kHadamard)
          offset[v] = load<kLane>(static_cast<const float *>(args_.offset) + c + v * kLane);
      }
      tile<Rows, vectors, kLane>(
          slope, Width, static_cast<const float *>(args_.w1) + c, relation_, args_.hidden,
          [](int, int) { return Vec<kLane>{}; },
          [&](int m, int v, Vec<kLane> grad) {
            const int place = c + v * kLane;
            const Vec<kLane> other = load<kLane>(key[m] + place);
            const Vec<kLane> gathered = load<kLane>(target[m] + place);
            if constexpr (kDelta == kHadamard) {
              grad = keep_positive<kLane>(grad, own[v] * other + offset[v]);
              sum[v] += grad * other;
              store<kLane>(target[m] + place, gathered + grad * own[v]);
            } else {
              grad = keep_positive<kLane>(grad, own[v] - other);
              sum[v] += grad;
              store<kLane>(target[m] + place, gathered - grad);
            }
          });
      SAN_UNROLL for (int v = 0; v < vectors; v++)
        store<kLane>(grad_query + c + v * kLane, sum[v]);
    }
  }

  template <int Rows>
  SAN_INLINE void spread_dots(const float *slope, const float *query, const float *const *key,
                              float *const *target, const uint16_t *signs,
                              float *grad_query) const {
    const float *weight = static_cast<const float *>(args_.w1);
    float grad[Rows];
    SAN_UNROLL for (int m = 0; m < Rows; m++) {
      Vec<kGroupLane> sum{};
      for (int k = 0; k < args_.hidden; k += kGroupLane)
        sum += load<kGroupLane>(slope + m * Width + k) * load<kGroupLane>(weight + k);
      grad[m] = signs[m] ? lanes_sum<kGroupLane>(sum) : 0.0f;
    }
    for (int c = 0; c < relation_; c += kLane) {
      const Vec<kLane> own = load<kLane>(query + c);
      Vec<kLane> sum = load<kLane>(grad_query + c);
      SAN_UNROLL for (int m = 0; m < Rows; m++) {
        sum += grad[m] * load<kLane>(key[m] + c);
        store<kLane>(target[m] + c, load<kLane>(target[m] + c) + grad[m] * own);
      }
      store<kLane>(grad_query + c, sum);
    }
  }

  // Of a concatenation the first layer's gradient is the query's, and the key's but for its sign.
  template <int Rows>
  SAN_INLINE void spread_whole(const float *slope, float *const *target, float *grad_query) const {
    for (int c = 0; c < args_.hidden; c += kGroupLane) {
      Vec<kGroupLane> sum = load<kGroupLane>(grad_query + c);
      SAN_UNROLL for (int m = 0; m < Rows; m++) {
        const Vec<kGroupLane> grad = load<kGroupLane>(slope + m * Width + c);
        sum += grad;
        store<kGroupLane>(target[m] + c, load<kGroupLane>(target[m] + c) - grad);
      }
      store<kGroupLane>(grad_query + c, sum);
    }
  }

  const int bands_;
  const int64_t row_;  // floats of a row of the map
  float *const grad_qkv_;
};

}  // namespace san
