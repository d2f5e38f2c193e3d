// The gradients of scalar attention; the weights are computed anew.
#pragma once
#include "bands.h"
#include "local_map.h"

namespace san::local {

template <int Heads> class Backward : protected Map<Heads> {
 public:
  explicit Backward(const LocalArgs &args) : Base(args), bands_(args, merged_, key_at_) {}

  void run() const {
    const size_t weights = this->weights_size(), offsets = this->offsets_size();
    bands_.run(2 * weights + offsets + kRun * args_.channels, [&](const Band &band, float *memory) {
      const Work work{band, memory, memory + weights, memory + 2 * weights,
                      memory + 2 * weights + offsets};
      for (int64_t y = band.first; y < band.end; y++)
        this->each_run(band.image, y, [&](const Run &run) { compute(work, run); });
    });
  }

 protected:
  using Base = Map<Heads>;
  using Base::args_, Base::embedding_, Base::footprint_, Base::height_, Base::key_at_,
      Base::merged_, Base::near_, Base::reach_, Base::row_, Base::value_at_, Base::width_;

  // A band with its buffers: [kRun][row_] twice, a pixel's offsets, [kRun][channel].
  struct Work {
    const Band &band;
    float *weights, *slopes, *offsets, *grad;
  };

  void compute(const Work &work, const Run &run) const {
    const int64_t first = (run.image * height_ + run.y) * width_ + run.x;
    const float *queries = this->pixel(run);
    float *result = bands_.collected(work.band, run.y) + run.x * merged_;
    for (int m = 0; m < run.count; m++)
      output_gradient((first + m) * args_.channels, work.grad + m * args_.channels);
    this->weigh(run, work.weights, work.offsets);
    this->dots(run, work.grad, args_.channels, value_at_, args_.channels, work.slopes);
    for (int m = 0; m < run.count; m++) {
      float *weights = work.weights + m * row_, *slopes = work.slopes + m * row_;
      unsoftmax(weights, slopes);
      if (embedding_) unembed(slopes, first + m, work.offsets, result + m * merged_);
      this->fold(run.y, run.x + m, weights);
      if (args_.keys) this->fold(run.y, run.x + m, slopes);
    }
    if (args_.keys) {
      this->sums(run, work.slopes, key_at_, args_.relation, [&](int m, int c, V sum) {
        float *to = result + m * merged_ + c;
        store<kLanes>(to, load<kLanes>(to) + sum);
      });
      spread(work.band, run, work.slopes, queries, merged_, key_at_, args_.relation);
    }
    spread(work.band, run, work.weights, work.grad, args_.channels, value_at_, args_.channels);
  }

  // The gradient of what stands before scale, shift and relu.
  void output_gradient(int64_t at, float *grad) const {
    const float *from = static_cast<const float *>(args_.grad) + at;
    const auto *scale = static_cast<const float *>(args_.scale);
    for (int c = 0; c < args_.channels; c += kLanes) {
      V v = load<kLanes>(from + c);
      if (scale)
        v = keep_positive<kLanes>(v * load<kLanes>(scale + c),
                                  load<kLanes>(static_cast<const float *>(args_.out) + at + c));
      store<kLanes>(grad + c, v);
    }
  }

  // From the gradients of a pixel's weights to those of its logits.
  void unsoftmax(const float *weights, float *slopes) const {
    std::fill(slopes + near_ * Heads, slopes + row_, 0.0f);
    V mean{};
    for (int i = 0; i < row_; i += kLanes)
      mean += load<kLanes>(weights + i) * load<kLanes>(slopes + i);
    mean = across<Heads>(mean, added);
    for (int i = 0; i < row_; i += kLanes)
      store<kLanes>(slopes + i, load<kLanes>(weights + i) * (load<kLanes>(slopes + i) - mean));
  }

  // The gradients of a pixel's offsets, and what its query has of them.
  void unembed(const float *slopes, int64_t pixel, float *offsets, float *query) const {
    const int side = footprint_ * Heads;
    std::fill_n(offsets + side, side, 0.0f);
    for (int dy = 0; dy < footprint_; dy++) {
      V down{};
      for (int i = 0; i < side; i += kLanes) {
        const V slope = load_up_to<kLanes>(slopes + dy * side + i, side - i);
        float *across = offsets + side + i;
        store_up_to<kLanes>(across, load_up_to<kLanes>(across, side - i) + slope, side - i);
        down += slope;
      }
      this->store_heads(offsets + dy * Heads, down);
    }
    if (args_.grad_offset)
      memcpy(static_cast<float *>(args_.grad_offset) + pixel * 2 * side, offsets,
             sizeof(float) * static_cast<size_t>(2 * side));
    const int half = args_.relation / 2;
    for (int c = 0; c < args_.relation; c += kLanes) {
      const int part = c < half ? 0 : 1;
      const float *embedded = embedding_ + part * footprint_ * half + c - part * half;
      V sum{};
      for (int i = 0; i < footprint_; i++)
        sum += this->by_lane(offsets + part * side + i * Heads) * load<kLanes>(embedded + i * half);
      store<kLanes>(query + c, sum);
    }
  }

  // Adds to what is collected of each neighbour, from `at` on, what a run's pixels pass to it:
  // their `left` under the folded `weights`.
  void spread(const Band &band, const Run &run, const float *weights, const float *left,
              int64_t step, int at, int channels) const {
    const Clip down(run.y, height_, reach_);
    const int64_t first = std::max<int64_t>(0, run.x - reach_);
    const int64_t end = std::min(width_, run.x + run.count + reach_);
    for (int dy = down.first; dy < down.end; dy++) {
      float *row = bands_.collected(band, run.y + dy - reach_) + at;
      const float *weight = weights + (dy * footprint_ + reach_) * Heads;
      this->template each_together<kTogether>(end - first, [&](int64_t i, auto count) {
        this->each_bundle(channels, [&](int c, auto vectors) {
          spread<decltype(count)::value, decltype(vectors)::value>(
              run, first + i, weight, left + c, step, row + (first + i) * merged_ + c);
        });
      });
    }
  }

  template <int Count, int Vectors>
  SAN_INLINE void spread(const Run &run, int64_t to, const float *weight, const float *left,
                         int64_t step, float *collected) const {
    V sum[Count][Vectors];
    SAN_UNROLL for (int i = 0; i < Count; i++)
      SAN_UNROLL for (int v = 0; v < Vectors; v++)
        sum[i][v] = load<kLanes>(collected + i * merged_ + v * kLanes);
    this->template each_within<Count>(to, run.x, run.x + run.count,
                                      [&](int64_t from, auto... has) __attribute__((always_inline)) {
      constexpr bool meets[] = {decltype(has)::value...};
      const int64_t m = from - run.x;
      V factor[Count];
      SAN_UNROLL for (int i = 0; i < Count; i++)
        if (meets[i]) factor[i] = this->by_lane(weight + m * row_ + (to + i - from) * Heads);
      SAN_UNROLL for (int v = 0; v < Vectors; v++) {
        const V own = load<kLanes>(left + m * step + v * kLanes);
        SAN_UNROLL for (int i = 0; i < Count; i++)
          if (meets[i]) sum[i][v] += factor[i] * own;
      }
    });
    SAN_UNROLL for (int i = 0; i < Count; i++)
      SAN_UNROLL for (int v = 0; v < Vectors; v++)
        store<kLanes>(collected + i * merged_ + v * kLanes, sum[i][v]);
  }

  const Bands bands_;
};

}  // namespace san::local
