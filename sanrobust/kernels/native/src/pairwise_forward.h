// The output of pairwise attention.
#pragma once
#include "pairwise_layer.h"

namespace san {

template <int Width> class PairwiseForward : PairwiseLayer<Width> {
  using Base = PairwiseLayer<Width>;
  using Shape = PairwiseShape<Width>;
  using Window = typename Base::Window;
  using Base::args_;
  static constexpr int kGroups = Shape::kGroups, kChannels = Shape::kChannels;
  static constexpr int kLane = Shape::kLane, kGroupLane = Shape::kGroupLane;

 public:
  explicit PairwiseForward(const PairwiseArgs &args)
      : Base(args), past_caches_(past_caches(args)) {}

  void run() const {
    const int64_t pixels = args_.images * args_.height * args_.width;
    constexpr int64_t chunk = std::max(1, 512 / Width);
    parallel_for((pixels + chunk - 1) / chunk, args_.threads, [&](int64_t task) {
      const int64_t end = std::min(pixels, (task + 1) * chunk);
      Window window;
      for (int64_t i = task * chunk; i < end; i++) {
        const int64_t row = i / this->width_;
        const int x = static_cast<int>(i - row * this->width_);
        if (i > task * chunk && this->follows(x)) this->shift(window);
        else this->find(window, row / this->height_, static_cast<int>(row % this->height_), x);
        attend(window, i);
      }
      if (past_caches_) end_streams();
    });
  }

 private:
  // Weights too many for the caches would only drive other things out of them.
  static bool past_caches(const PairwiseArgs &args) {
    const int64_t weights = args.images * args.height * args.width * args.footprint *
                            args.footprint * kGroups;
    return weights > (1 << 20) && reinterpret_cast<uintptr_t>(args.alpha) % 64 == 0;
  }

  void attend(const Window &window, int64_t pixel) const {
    alignas(64) float weight[kMostNeighbours * kGroups], top[kGroups], inverse[kGroups];
    std::fill(top, top + kGroups, Base::kNone);
    const float *query = this->qkv_ + pixel * this->step_;
    uint16_t *signs = this->signs(pixel);
    each_block<Shape::kRows>(window.count, [&](int first, auto rows) {
      constexpr int count = decltype(rows)::value;
      if (args_.mapping == kL)
        linear<count>(query, window, first, weight + first * kGroups, top, signs);
      else
        logits<count>(query, window, first, weight + first * kGroups, top, signs);
    });
    softmax(window, top, weight, inverse);
    if (args_.alpha) keep(window.count, weight, inverse, pixel);
    aggregate(window, weight, inverse, pixel);
  }

  template <int Rows>
  SAN_INLINE void logits(const float *query, const Window &window, int first, float *out,
                         float *top, uint16_t *signs) const {
    alignas(64) float t[Rows * Width], h[Rows * Width];
    this->template layer<Rows, Width>(query, window, first, t, h, signs);
    if (signs) keep_signs<Rows>(h, signs + first * Shape::kSignWords);
    if (this->layers_ == 2) {
      product<Rows, Width>(
          h, Width, static_cast<const float *>(args_.w_mid_t), Width, Width,
          [&](int, int c) { return load<kLane>(static_cast<const float *>(args_.b_mid) + c); },
          [&](int m, int c, Vec<kLane> sum) { store<kLane>(t + m * Width + c, relu<kLane>(sum)); });
      if (signs) keep_signs<Rows>(t, signs + this->layer_signs(1) + first * Shape::kSignWords);
    }
    const float *last = this->layers_ == 2 ? t : h;
    constexpr int vectors = kGroups / kGroupLane % 2 == 0 ? 2 : 1;
    for (int s = 0; s < kGroups; s += vectors * kGroupLane) {
      Vec<kGroupLane> most[vectors];
      SAN_UNROLL for (int v = 0; v < vectors; v++)
        most[v] = load<kGroupLane>(top + s + v * kGroupLane);
      tile<Rows, vectors, kGroupLane>(
          last, Width, static_cast<const float *>(args_.w2t) + s, kGroups, Width,
          [](int, int) { return Vec<kGroupLane>{}; },
          [&](int m, int v, Vec<kGroupLane> sum) {
            most[v] = at_least<kGroupLane>(most[v], sum);
            store<kGroupLane>(out + m * kGroups + s + v * kGroupLane, sum);
          });
      SAN_UNROLL for (int v = 0; v < vectors; v++)
        store<kGroupLane>(top + s + v * kGroupLane, most[v]);
    }
  }

  // The logits where the first layer is the only one.
  template <int Rows>
  SAN_INLINE void linear(const float *query, const Window &window, int first, float *out,
                         float *top, uint16_t *signs) const {
    alignas(64) float t[Rows * Width];
    this->template layer<Rows, kGroups>(query, window, first, t, out, signs);
    for (int s = 0; s < kGroups; s += kGroupLane) {
      Vec<kGroupLane> most = load<kGroupLane>(top + s);
      for (int m = 0; m < Rows; m++)
        most = at_least<kGroupLane>(most, load<kGroupLane>(out + m * kGroups + s));
      store<kGroupLane>(top + s, most);
    }
  }

  template <int Rows> static SAN_INLINE void keep_signs(const float *h, uint16_t *signs) {
    for (int word = 0; word < Rows * Shape::kSignWords; word++) {
      uint32_t bits = 0;
      SAN_UNROLL for (int l = 0; l < 16; l += kLane)
        bits |= positive_bits<kLane>(load<kLane>(h + word * 16 + l)) << l;
      signs[word] = static_cast<uint16_t>(bits);
    }
  }

  // Leaves times * exp(logit - maximum) in `weight` and one over the sum of that in `inverse`.
  static void softmax(const Window &window, const float *top, float *weight, float *inverse) {
    if constexpr (Shape::kRepeat == 2)
      if (window.once) return softmax_by_two(window.count, top, weight, inverse);
    for (int s = 0; s < kGroups; s += kGroupLane) {
      const Vec<kGroupLane> most = load<kGroupLane>(top + s);
      Vec<kGroupLane> sum{};
      for (int j = 0; j < window.count; j++) {
        float *place = weight + j * kGroups + s;
        const Vec<kGroupLane> power =
            exp_nonpositive<kGroupLane>(load<kGroupLane>(place) - most) * window.times[j];
        sum += power;
        store<kGroupLane>(place, power);
      }
      store<kGroupLane>(inverse + s, 1.0f / sum);
    }
  }

  // The same for two neighbours in a vector: an odd number of them, each occurring once.
  static void softmax_by_two(int count, const float *top, float *weight, float *inverse) {
    const Vec<kLane> most = load_twice<kLane>(top);
    Vec<kLane> sum{};
    const int last = (count - 1) * kGroups;
    for (int i = 0; i < last; i += kLane) {
      const Vec<kLane> power = exp_nonpositive<kLane>(load<kLane>(weight + i) - most);
      sum += power;
      store<kLane>(weight + i, power);
    }
    const Vec<kGroupLane> power = exp_nonpositive<kGroupLane>(
        load<kGroupLane>(weight + last) - load<kGroupLane>(top));
    store<kGroupLane>(weight + last, power);
    store<kGroupLane>(inverse, 1.0f / (halves_sum<kLane>(sum) + power));
  }

  void keep(int count, const float *weight, const float *inverse, int64_t pixel) const {
    float *alpha = static_cast<float *>(args_.alpha) + pixel * this->positions_ * kGroups;
    for (int i = 0; i < count * kGroups; i += kGroups)
      SAN_UNROLL for (int s = 0; s < kGroups; s += kGroupLane) {
        const Vec<kGroupLane> share =
            load<kGroupLane>(weight + i + s) * load<kGroupLane>(inverse + s);
        if (past_caches_) stream<kGroupLane>(alpha + i + s, share);
        else store<kGroupLane>(alpha + i + s, share);
      }
  }

  void aggregate(const Window &window, const float *weight, const float *inverse,
                 int64_t pixel) const {
    constexpr int bundle = Shape::kBundle;
    for (int s = 0; s < kGroups; s += kGroupLane) {
      Vec<kLane> sum[bundle];
      SAN_UNROLL for (int v = 0; v < bundle; v++) sum[v] = Vec<kLane>{};
      for (int j = 0; j < window.count; j++) {
        const Vec<kLane> factor = Shape::weights(weight + j * kGroups + s);
        const float *value = window.key[j] + this->relation_;
        SAN_UNROLL for (int v = 0; v < bundle; v++)
          sum[v] += factor * load<kLane>(value + Shape::channel(s, v));
      }
      const Vec<kLane> factor = Shape::weights(inverse + s);
      SAN_UNROLL for (int v = 0; v < bundle; v++)
        write(pixel, Shape::channel(s, v), sum[v] * factor);
    }
  }

  SAN_INLINE void write(int64_t pixel, int c, Vec<kLane> sum) const {
    const float *scale = static_cast<const float *>(args_.scale);
    const float *shift = static_cast<const float *>(args_.shift);
    const int64_t place = pixel * kChannels + c;
    if (args_.y) store<kLane>(static_cast<float *>(args_.y) + place, sum);
    if (!args_.out) return;
    if (scale) sum = relu<kLane>(sum * load<kLane>(scale + c) + load<kLane>(shift + c));
    store<kLane>(static_cast<float *>(args_.out) + place, sum);
  }

  const bool past_caches_;
};

}  // namespace san
