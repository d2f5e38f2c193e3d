// The output of patchwise attention.
#pragma once
#include "patchwise_map.h"

namespace san::patchwise {

template <int Relation> class Forward : Map<Relation> {
 public:
  explicit Forward(const PatchwiseArgs &args) : Base(args) {}

  void run() const {
    const int64_t pixels = args_.images * height_ * width_;
    const int64_t tiles = (pixels + kRows - 1) / kRows;
    share_tasks(tiles, args_.threads, this->weights_size(), [&](int64_t task, float *memory) {
      const int64_t first = pixels * task / tiles, end = pixels * (task + 1) / tiles;
      with_rows<kRows>(static_cast<int>(end - first), [&](auto rows) {
        compute<decltype(rows)::value>(first, memory);
      });
    });
  }

 private:
  using Base = Map<Relation>;
  using Base::args_, Base::footprint_, Base::height_, Base::near_, Base::qkv_, Base::reach_,
      Base::width_;
  using Base::kChannels, Base::kGroupLanes, Base::kGroups, Base::kHidden, Base::kMerged,
      Base::kRelationLanes, Base::kRows, Base::kValueAt;
  using Base::kBundle, Base::kLane;
  using typename Sizes<Relation>::Wide;

  template <int Rows> void compute(int64_t pixel, float *weights) const {
    alignas(64) float hidden[Rows * kHidden];
    Run run[kRows];
    const int runs = this->runs(pixel, Rows, run);
    if (args_.w1) {
      hide<Rows>(pixel, run, hidden);
      if (args_.h) memcpy(Base::pointer(args_.h) + pixel * kHidden, hidden, sizeof hidden);
    } else {
      this->template read_hidden<Rows>(pixel, hidden);
    }
    if (!args_.y && !args_.out) return;
    this->template weigh<Rows>(hidden, weights);
    for (int i = 0; i < runs; i++) {
      float *own = weights + run[i].at * near_ * kGroups;
      for (int m = 0; m < run[i].count; m++)
        this->fold(run[i].y, run[i].x + m, own + m * near_ * kGroups);
      this->each_together(run[i].count, [&](int64_t m, auto count) {
        aggregate<decltype(count)::value>(run[i], m, own + m * near_ * kGroups);
      });
    }
  }

  // The hidden layer of a tile, each panel's sum on its own: one long chain of sums would lose
  // two bits.
  template <int Rows> void hide(int64_t pixel, const Run *run, float *hidden) const {
    alignas(64) float panel[Rows * kPanelRow];
    const float *w1t = Base::pointer(args_.w1t), *b1 = Base::pointer(args_.b1);
    this->template fill_queries<Rows>(pixel, panel);
    Base::template multiply<Rows, kHidden>(
        panel, kPanelRow, w1t, kHidden, Relation,
        [&](int, int c) { return load<kGroupLanes>(b1 + c); },
        [&](int m, int c, Vec<kGroupLanes> sum) {
          store<kGroupLanes>(hidden + m * kHidden + c, sum);
        });
    constexpr int most = kPanel / Relation;
    const int panels = (near_ + most - 1) / most;
    for (int p = 0; p < panels; p++) {
      const int first = near_ * p / panels, end = near_ * (p + 1) / panels;
      for (int n = first; n < end; n++) this->template fill<Rows>(run, n, panel + (n - first) * Relation);
      Base::template multiply<Rows, kHidden>(
          panel, kPanelRow, w1t + (1 + first) * Relation * kHidden, kHidden,
          (end - first) * Relation, Nothing<kHidden>(),
          [&](int m, int c, Vec<kGroupLanes> sum) {
            float *to = hidden + m * kHidden + c;
            store<kGroupLanes>(to, load<kGroupLanes>(to) + sum);
          });
    }
    if (args_.hidden_alone) return;
    for (int i = 0; i < Rows * kHidden; i += kGroupLanes)
      store<kGroupLanes>(hidden + i, relu<kGroupLanes>(load<kGroupLanes>(hidden + i)));
  }

  // The output of pixels m.. of a run from their folded weights.
  template <int Count>
  SAN_INLINE void aggregate(const Run &run, int64_t m, const float *weights) const {
    const int64_t x = run.x + m, pixel = (run.image * height_ + run.y) * width_ + x;
    const Clip down(run.y, height_, reach_);
    for (int s = 0; s < kGroups; s += kLane) {
      Wide sum[Count][kBundle]{};
      for (int dy = down.first; dy < down.end; dy++) {
        const float *row = qkv_ + kValueAt +
            (run.image * height_ + run.y + dy - reach_) * width_ * kMerged;
        const float *weight = weights + (dy * footprint_ + reach_) * kGroups + s;
        this->template each_within<Count>(x, 0, width_, [&](int64_t from, auto... has)
                                                            __attribute__((always_inline)) {
          constexpr bool meets[] = {decltype(has)::value...};
          Wide factor[Count];
          SAN_UNROLL for (int i = 0; i < Count; i++)
            if (meets[i])
              factor[i] = Base::weights(weight + (i * near_ + from - x - i) * kGroups);
          SAN_UNROLL for (int v = 0; v < kBundle; v++) {
            const Wide value = load<kLane>(row + from * kMerged + Base::channel(s, v));
            SAN_UNROLL for (int i = 0; i < Count; i++)
              if (meets[i]) sum[i][v] += factor[i] * value;
          }
        });
      }
      SAN_UNROLL for (int i = 0; i < Count; i++)
        SAN_UNROLL for (int v = 0; v < kBundle; v++)
          finish((pixel + i) * kChannels + Base::channel(s, v), Base::channel(s, v), sum[i][v]);
    }
  }

  SAN_INLINE void finish(int64_t at, int channel, Wide sum) const {
    if (args_.y) store<kLane>(Base::pointer(args_.y) + at, sum);
    if (!args_.out) return;
    if (args_.scale)
      sum = relu<kLane>(sum * load<kLane>(Base::pointer(args_.scale) + channel) +
                        load<kLane>(Base::pointer(args_.shift) + channel));
    store<kLane>(Base::pointer(args_.out) + at, sum);
  }
};

}  // namespace san::patchwise
