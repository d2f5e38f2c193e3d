// The output of scalar attention.
#pragma once
#include "local_map.h"
#include "tasks.h"

namespace san::local {

template <int Heads> class Forward : Map<Heads> {
 public:
  explicit Forward(const LocalArgs &args) : Base(args) {}

  void run() const {
    const size_t weights = this->weights_size();
    share_tasks(args_.images * height_, args_.threads, weights + this->offsets_size(),
                [&](int64_t task, float *memory) {
      this->each_run(task / height_, task % height_, [&](const Run &run) {
        compute(run, memory, memory + weights);
      });
    });
  }

 private:
  using Base = Map<Heads>;
  using Base::args_, Base::height_, Base::row_, Base::value_at_, Base::width_;

  void compute(const Run &run, float *weights, float *offsets) const {
    this->weigh(run, weights, offsets);
    for (int m = 0; m < run.count; m++) this->fold(run.y, run.x + m, weights + m * row_);
    float *out = static_cast<float *>(args_.out) +
                 ((run.image * height_ + run.y) * width_ + run.x) * args_.channels;
    const auto *scale = static_cast<const float *>(args_.scale);
    const auto *shift = static_cast<const float *>(args_.shift);
    this->sums(run, weights, value_at_, args_.channels, [&](int m, int c, V sum) {
      if (scale) sum = relu<kLanes>(sum * load<kLanes>(scale + c) + load<kLanes>(shift + c));
      store<kLanes>(out + static_cast<int64_t>(m) * args_.channels + c, sum);
    });
  }
};

}  // namespace san::local
