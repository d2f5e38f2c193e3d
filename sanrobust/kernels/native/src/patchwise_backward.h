// The gradients of patchwise attention.
#pragma once
#include "bands.h"
#include "patchwise_map.h"

namespace san::patchwise {

template <int Relation> class Backward : Map<Relation> {
 public:
  explicit Backward(const PatchwiseArgs &args) : Base(args), bands_(args, kMerged, kKeyAt) {}

  void run() const {
    const size_t weights = this->weights_size();
    const int64_t keys = near_ * Relation, logits = near_ * kGroups;
    Learned<float> learned({{args_.grad_w1t, (Relation + keys) * kHidden},
                            {args_.grad_key_scale, keys},
                            {args_.grad_key_shift, keys},
                            {args_.grad_w2t, kHidden * logits},
                            {args_.grad_b2, logits}},
                           bands_.tasks());
    bands_.run(2 * weights + kRows * kChannels, [&](const Band &band, float *memory) {
      compute(Work{band, memory, memory + weights, memory + 2 * weights});
    }, args_.adds, learned ? &learned : nullptr);
  }

 private:
  using Base = Map<Relation>;
  using Base::args_, Base::footprint_, Base::height_, Base::near_, Base::qkv_, Base::reach_,
      Base::width_;
  using Base::kChannels, Base::kGroupLanes, Base::kGroups, Base::kHidden, Base::kKeyAt,
      Base::kMerged, Base::kRelationLanes, Base::kRows, Base::kValueAt;
  using Base::kBundle, Base::kLane;
  using typename Sizes<Relation>::Wide;

  // A band with its buffers: [kRows][neighbour][group] twice, [kRows][channel].
  struct Work {
    const Band &band;
    float *weights, *slopes, *grad;
  };

  void compute(const Work &work) const {
    const Band &band = work.band;
    const int64_t first = (band.image * height_ + band.first) * width_;
    const int64_t pixels = (band.end - band.first) * width_;
    const int64_t tiles = (pixels + kRows - 1) / kRows;
    for (int64_t i = 0; i < tiles; i++) {
      const int64_t from = pixels * i / tiles, to = pixels * (i + 1) / tiles;
      with_rows<kRows>(static_cast<int>(to - from), [&](auto rows) {
        compute_tile<decltype(rows)::value>(work, first + from);
      });
    }
  }

  template <int Rows> void compute_tile(const Work &work, int64_t pixel) const {
    alignas(64) float slope[Rows * kHidden];
    Run run[kRows];
    const int runs = this->runs(pixel, Rows, run);
    if (args_.hidden_alone) {
      memcpy(slope, Base::pointer(args_.grad) + pixel * kHidden, sizeof slope);
      return unhide<Rows>(work, pixel, run, slope);
    }
    alignas(64) float given[Rows * kHidden];
    const float *hidden = given;
    if (args_.w1) hidden = Base::pointer(args_.h) + pixel * kHidden;
    else this->template read_hidden<Rows>(pixel, given);
    this->template weigh<Rows>(hidden, work.weights);
    for (int m = 0; m < Rows; m++) output_gradient(pixel + m, work.grad + m * kChannels);
    for (int i = 0; i < runs; i++) {
      weight_gradient(work, run[i]);
      value_gradient(work, run[i]);
    }
    hidden_gradient<Rows>(work.slopes, hidden, slope);
    if (args_.grad_w2t) learn_weights(work, hidden, Rows);
    if (!args_.w1) {
      memcpy(Base::pointer(args_.grad_h) + pixel * kHidden, slope, sizeof slope);
      return;
    }
    unhide<Rows>(work, pixel, run, slope);
  }

  // From the gradient of the hidden layer to those of queries and keys, and of what made it.
  template <int Rows>
  void unhide(const Work &work, int64_t pixel, const Run *run, const float *slope) const {
    alignas(64) float panel[Rows * kPanelRow];
    const auto learn = [&](int part) {
      if (args_.grad_w1t)
        add_products<Relation, kHidden>(panel, kPanelRow, slope, kHidden, Rows,
                                        work.band.learned + part * Relation * kHidden, kHidden);
    };
    query_gradient<Rows>(pixel, slope);
    if (args_.grad_w1t) this->template fill_queries<Rows>(pixel, panel);
    learn(0);
    for (int n = 0; n < near_; n++) {
      key_gradient<Rows>(work, run, n, slope);
      if (args_.grad_w1t) this->template fill<Rows>(run, n, panel);
      learn(1 + n);
    }
  }

  // Adds to the sums of w2t and b2 what a tile's weights pass to them.
  void learn_weights(const Work &work, const float *hidden, int rows) const {
    const int64_t row = near_ * kGroups;
    float *w2t = work.band.learned, *b2 = w2t + kHidden * row;
    for (int c = 0; c < row; c += kGroups)
      add_products<kHidden, kGroups>(hidden, kHidden, work.slopes + c, row, rows, w2t + c, row);
    for (int m = 0; m < rows; m++)
      for (int c = 0; c < row; c += kGroupLanes)
        store<kGroupLanes>(b2 + c, load<kGroupLanes>(b2 + c) +
                                       load<kGroupLanes>(work.slopes + m * row + c));
  }

  // The gradient of y, behind the epilogue's relu.
  SAN_INLINE void output_gradient(int64_t pixel, float *grad) const {
    const float *from = Base::pointer(args_.grad) + pixel * kChannels;
    const float *out = Base::pointer(args_.out) + (args_.scale ? pixel * kChannels : 0);
    for (int c = 0; c < kChannels; c += kLane) {
      Wide v = load<kLane>(from + c);
      if (args_.scale)
        v = keep_positive<kLane>(v * load<kLane>(Base::pointer(args_.scale) + c),
                                 load<kLane>(out + c));
      store<kLane>(grad + c, v);
    }
  }

  // Products of the pixels' gradients with their neighbours' values.
  void weight_gradient(const Work &work, const Run &run) const {
    const int64_t row = near_ * kGroups;
    float *weights = work.weights + run.at * row, *slopes = work.slopes + run.at * row;
    this->each_together(run.count, [&](int64_t m, auto count) {
      weight_gradient<decltype(count)::value>(
          run, m, work.grad + (run.at + m) * kChannels, slopes + m * row);
    });
    for (int m = 0; m < run.count; m++) {
      this->fold(run.y, run.x + m, weights + m * row);
      this->unfold(run.y, run.x + m, slopes + m * row);
    }
  }

  template <int Count>
  SAN_INLINE void weight_gradient(const Run &run, int64_t m, const float *grad,
                                  float *slopes) const {
    const int64_t x = run.x + m;
    const Clip down(run.y, height_, reach_);
    for (int s = 0; s < kGroups; s += kLane) {
      Wide own[Count][kBundle];
      SAN_UNROLL for (int i = 0; i < Count; i++)
        SAN_UNROLL for (int v = 0; v < kBundle; v++)
          own[i][v] = load<kLane>(grad + i * kChannels + Base::channel(s, v));
      for (int dy = down.first; dy < down.end; dy++) {
        const float *row = qkv_ + kValueAt +
            (run.image * height_ + run.y + dy - reach_) * width_ * kMerged;
        float *slope = slopes + (dy * footprint_ + reach_) * kGroups + s;
        this->template each_within<Count>(x, 0, width_, [&](int64_t from, auto... has)
                                                            __attribute__((always_inline)) {
          constexpr bool meets[] = {decltype(has)::value...};
          Wide sum[Count][2]{};
          SAN_UNROLL for (int v = 0; v < kBundle; v++) {
            const Wide value = load<kLane>(row + from * kMerged + Base::channel(s, v));
            SAN_UNROLL for (int i = 0; i < Count; i++)
              if (meets[i]) sum[i][v % 2] += own[i][v] * value;
          }
          SAN_UNROLL for (int i = 0; i < Count; i++)
            if (meets[i])
              store<kGroupLanes>(slope + (i * near_ + from - x - i) * kGroups,
                                 Base::groups_sum(sum[i][0] + sum[i][1]));
        });
      }
    }
  }

  // Adds to each value in reach what the run's pixels pass to it: all of one row at once, so that
  // a sum is loaded and stored once for several pixels.
  void value_gradient(const Work &work, const Run &run) const {
    const Clip down(run.y, height_, reach_);
    const int64_t first = std::max<int64_t>(0, run.x - reach_);
    const int64_t end = std::min(width_, run.x + run.count + reach_);
    for (int dy = down.first; dy < down.end; dy++) {
      float *row = bands_.collected(work.band, run.y + dy - reach_) + kValueAt;
      this->each_together(end - first, [&](int64_t to, auto count) {
        add_values<decltype(count)::value>(work, run, dy, first + to,
                                           row + (first + to) * kMerged);
      });
    }
  }

  template <int Count>
  SAN_INLINE void add_values(const Work &work, const Run &run, int dy, int64_t to,
                             float *sums) const {
    for (int s = 0; s < kGroups; s += kLane) {
      const float *weight = work.weights + s +
          (run.at * near_ + dy * footprint_ + reach_) * kGroups;
      const float *grad = work.grad + run.at * kChannels;
      Wide sum[Count][kBundle];
      SAN_UNROLL for (int i = 0; i < Count; i++)
        SAN_UNROLL for (int v = 0; v < kBundle; v++)
          sum[i][v] = load<kLane>(sums + i * kMerged + Base::channel(s, v));
      this->template each_within<Count>(to, run.x, run.x + run.count,
                                        [&](int64_t from, auto... has)
                                            __attribute__((always_inline)) {
        constexpr bool meets[] = {decltype(has)::value...};
        const int64_t m = from - run.x;
        Wide factor[Count];
        SAN_UNROLL for (int i = 0; i < Count; i++)
          if (meets[i]) factor[i] = Base::weights(weight + (m * near_ + to + i - from) * kGroups);
        SAN_UNROLL for (int v = 0; v < kBundle; v++) {
          const Wide own = load<kLane>(grad + m * kChannels + Base::channel(s, v));
          SAN_UNROLL for (int i = 0; i < Count; i++)
            if (meets[i]) sum[i][v] += factor[i] * own;
        }
      });
      SAN_UNROLL for (int i = 0; i < Count; i++)
        SAN_UNROLL for (int v = 0; v < kBundle; v++)
          store<kLane>(sums + i * kMerged + Base::channel(s, v), sum[i][v]);
    }
  }

  template <int Rows>
  void hidden_gradient(const float *slopes, const float *hidden, float *slope) const {
    constexpr int most = kPanel / kGroups;
    const int panels = (near_ + most - 1) / most;
    std::fill_n(slope, Rows * kHidden, 0.0f);
    for (int p = 0; p < panels; p++) {
      const int first = near_ * p / panels, end = near_ * (p + 1) / panels;
      Base::template multiply<Rows, kHidden>(
          slopes + first * kGroups, near_ * kGroups,
          Base::pointer(args_.w2) + first * kGroups * kHidden, kHidden, (end - first) * kGroups,
          Nothing<kHidden>(), [&](int m, int c, Vec<kGroupLanes> sum) {
            float *to = slope + m * kHidden + c;
            store<kGroupLanes>(to, load<kGroupLanes>(to) + sum);
          });
    }
    for (int i = 0; i < Rows * kHidden; i += kGroupLanes)
      store<kGroupLanes>(slope + i, keep_positive<kGroupLanes>(load<kGroupLanes>(slope + i),
                                                               load<kGroupLanes>(hidden + i)));
  }

  template <int Rows> void query_gradient(int64_t pixel, const float *slope) const {
    const float *query = qkv_ + pixel * kMerged;
    float *to = Base::pointer(args_.grad_qkv) + pixel * kMerged;
    Base::template multiply<Rows, Relation>(
        slope, kHidden, Base::pointer(args_.w1), (1 + near_) * Relation, kHidden,
        Nothing<Relation>(), [&](int m, int c, Vec<kRelationLanes> sum) {
          const auto gate = load<kRelationLanes>(query + m * kMerged + c);
          float *at = to + m * kMerged + c;
          sum = keep_positive<kRelationLanes>(sum, gate);
          store<kRelationLanes>(at, args_.adds ? load<kRelationLanes>(at) + sum : sum);
        });
  }

  // The gradients of the keys of neighbour `near`; a key outside the map has none.
  template <int Rows>
  void key_gradient(const Work &work, const Run *run, int near, const float *slope) const {
    alignas(64) float outside[Relation] = {}, nowhere[Relation] = {};
    const float *key[Rows];
    float *grad[Rows];
    this->template each_line<Rows>(run, near, [&](const Run &line, int64_t y, int64_t x) {
      const float *keys = this->keys_of(line, y);
      float *grads = y < 0 ? nullptr : bands_.collected(work.band, y) + kKeyAt;
      this->each_column(
          line, y, x,
          [&](int m, int64_t at) { key[m] = keys + at * kMerged, grad[m] = grads + at * kMerged; },
          [&](int m) { key[m] = outside, grad[m] = nowhere; });
    });
    const float *scales = Base::pointer(args_.key_scale) + near * Relation;
    const float *shifts = Base::pointer(args_.key_shift) + near * Relation;
    float *of_scale = nullptr, *of_shift = nullptr;
    if (args_.grad_w1t) {
      of_scale = work.band.learned + (1 + near_) * Relation * kHidden + near * Relation;
      of_shift = of_scale + near_ * Relation;
    }
    Base::template multiply<Rows, Relation>(
        slope, kHidden, Base::pointer(args_.w1) + (1 + near) * Relation, (1 + near_) * Relation,
        kHidden, Nothing<Relation>(), [&](int m, int c, Vec<kRelationLanes> sum) {
          const auto scale = load<kRelationLanes>(scales + c);
          const auto own = load<kRelationLanes>(key[m] + c);
          const auto gate = own * scale + load<kRelationLanes>(shifts + c);
          store<kRelationLanes>(grad[m] + c, load<kRelationLanes>(grad[m] + c) +
                                                 keep_positive<kRelationLanes>(sum * scale, gate));
          if (!args_.grad_w1t) return;
          const auto passed = keep_positive<kRelationLanes>(sum, gate);
          store<kRelationLanes>(of_shift + c, load<kRelationLanes>(of_shift + c) + passed);
          store<kRelationLanes>(of_scale + c, load<kRelationLanes>(of_scale + c) + passed * own);
        });
  }

  const Bands bands_;
};

}  // namespace san::patchwise
