// Gradients of a mapping's parameters: sums over the pairs of all images. Each task adds up its own,
// and those are added in one order, so that no sum depends on threads.
#pragma once
#include <vector>

#include "parallel.h"
#include "tile.h"

namespace san {

// sum[r][c] += sum over m < count of a[m][r] * b[m][c], for Rows by Columns sums.
template <int Rows, int Columns>
inline void add_products(const float *a, int64_t lda, const float *b, int64_t ldb, int count,
                         float *sum, int64_t ldsum) {
  constexpr int lane = lanes_for(Columns), vectors = Columns / lane % 2 == 0 ? 2 : 1;
  constexpr int rows = std::min(Rows, (kLanes == 16 ? 16 : 8) / vectors);
  static_assert(Rows % rows == 0, "blocks fill the rows");
  for (int r = 0; r < Rows; r += rows)
    for (int c = 0; c < Columns; c += vectors * lane) {
      Vec<lane> own[rows][vectors];
      SAN_UNROLL for (int i = 0; i < rows; i++)
        SAN_UNROLL for (int v = 0; v < vectors; v++)
          own[i][v] = load<lane>(sum + (r + i) * ldsum + c + v * lane);
      for (int m = 0; m < count; m++)
        SAN_UNROLL for (int v = 0; v < vectors; v++) {
          const Vec<lane> column = load<lane>(b + m * ldb + c + v * lane);
          SAN_UNROLL for (int i = 0; i < rows; i++)
            own[i][v] += splat<lane>(a[m * lda + r + i]) * column;
        }
      SAN_UNROLL for (int i = 0; i < rows; i++)
        SAN_UNROLL for (int v = 0; v < vectors; v++)
          store<lane>(sum + (r + i) * ldsum + c + v * lane, own[i][v]);
    }
}

template <class T> class Learned {
 public:
  // Where a gradient goes, null if nobody wants it, and of how many values it consists.
  struct Gradient {
    void *to;
    int64_t count;
  };

  Learned(std::vector<Gradient> gradients, int64_t tasks) : gradients_(std::move(gradients)) {
    for (const Gradient &each : gradients_) size_ += each.to ? each.count : 0;
    totals_.resize(size_);
    sums_.resize(size_ * tasks);
  }

  explicit operator bool() const { return size_ > 0; }
  int64_t size() const { return size_; }

  // What a task adds to, one gradient after another.
  T *of(int64_t task) { return sums_.data() + task * size_; }

  // Adds what the first tasks have found, and clears it.
  void add(int64_t tasks) {
    for (int64_t task = 0; task < tasks; task++)
      for (int64_t i = 0; i < size_; i++) totals_[i] += of(task)[i];
    std::fill(sums_.begin(), sums_.end(), T(0));
  }

  void write() const {
    int64_t at = 0;
    for (const Gradient &each : gradients_)
      for (int64_t i = 0; each.to && i < each.count; i++)
        static_cast<T *>(each.to)[i] = static_cast<T>(totals_[at++]);
  }

 private:
  const std::vector<Gradient> gradients_;
  int64_t size_ = 0;
  std::vector<double> totals_;
  std::vector<T> sums_;
};

}  // namespace san
