// Mean and variance of the first layer of a pairwise mapping over all pairs of all images.
#pragma once
#include "pairwise_layer.h"

namespace san {

// Sums of the distance from a value that occurs, and of its square, by rows of maps.
template <int Width> class PairwiseMoments : PairwiseLayer<Width> {
  using Base = PairwiseLayer<Width>;
  using Shape = PairwiseShape<Width>;
  using Window = typename Base::Window;
  using Base::args_;
  static constexpr int kLane = Shape::kLane;

 public:
  explicit PairwiseMoments(const PairwiseArgs &args) : Base(args) {}

  void run() const {
    alignas(64) float centre[Width];
    set_centre(centre);
    const int64_t rows = args_.images * args_.height;
    double *sums = scratch<double>(0, static_cast<size_t>(rows) * 2 * Width);
    parallel_for(rows, args_.threads, [&](int64_t row) { add(row, centre, sums + row * 2 * Width); });
    for (int64_t row = 1; row < rows; row++)
      for (int i = 0; i < 2 * Width; i++) sums[i] += sums[row * 2 * Width + i];
    const double pairs = static_cast<double>(rows) * this->width_ * this->positions_;
    for (int c = 0; c < Width; c++) {
      const double mean = sums[c] / pairs;
      args_.moments[c] = centre[c] + mean;
      const double variance = sums[Width + c] / pairs - mean * mean;
      args_.moments[Width + c] = variance < 0 ? 0 : variance;  // and NaN stays
    }
  }

 private:
  void set_centre(float *centre) const {
    alignas(64) float t[Width];
    Window window;
    this->find(window, 0, 0, 0);
    this->template layer<1, Width>(this->qkv_, window, 0, t, centre, nullptr);
  }

  void add(int64_t row, const float *centre, double *sums) const {
    std::fill(sums, sums + 2 * Width, 0.0);
    Window window;
    for (int x = 0; x < this->width_; x++) {
      if (this->follows(x)) this->shift(window);
      else this->find(window, row / this->height_, static_cast<int>(row % this->height_), x);
      alignas(64) float own[2 * Width] = {};
      each_block<Shape::kRows>(window.count, [&](int first, auto rows) {
        add_pairs<decltype(rows)::value>(row * this->width_ + x, window, first, centre, own);
      });
      for (int i = 0; i < 2 * Width; i++) sums[i] += own[i];
    }
  }

  template <int Rows>
  SAN_INLINE void add_pairs(int64_t pixel, const Window &window, int first, const float *centre,
                            float *sums) const {
    alignas(64) float t[Rows * Width], h[Rows * Width];
    this->template layer<Rows, Width>(this->qkv_ + pixel * this->step_, window, first, t, h,
                                      nullptr);
    for (int c = 0; c < Width; c += kLane) {
      const Vec<kLane> from = load<kLane>(centre + c);
      Vec<kLane> sum = load<kLane>(sums + c), square = load<kLane>(sums + Width + c);
      SAN_UNROLL for (int m = 0; m < Rows; m++) {
        const Vec<kLane> distance = load<kLane>(h + m * Width + c) - from;
        const Vec<kLane> counted = distance * window.times[first + m];
        sum += counted;
        square += counted * distance;
      }
      store<kLane>(sums + c, sum);
      store<kLane>(sums + Width + c, square);
    }
  }
};

}  // namespace san
