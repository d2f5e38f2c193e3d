// Scratch memory of tasks, and the way a map continues past its border.
#pragma once
#include <atomic>
#include <memory>
#include <vector>

#include "parallel.h"

namespace san {

// Where the positions first, first + 1, ... of a padded side come from; -1: from outside.
inline std::vector<int64_t> sources(int64_t first, int64_t count, int64_t side, bool zeros) {
  std::vector<int64_t> found(count);
  for (int64_t i = 0; i < count; i++) {
    const int64_t at = first + i;
    found[i] = zeros && (at < 0 || at >= side) ? -1 : reflect(at, side);
  }
  return found;
}

// Memory for as many tasks as run at a time, taken before they start.
template <class T> class Workspaces {
 public:
  Workspaces(int64_t count, size_t values)
      : count_(count), values_((values + 31) / 16 * 16), taken_(new std::atomic_flag[count]),
        memory_(scratch<T>(0, count * values_)) {
    for (int64_t i = 0; i < count_; i++) taken_[i].clear();
  }
  int64_t take() {
    for (int64_t i = 0;; i = (i + 1) % count_)
      if (!taken_[i].test_and_set(std::memory_order_acquire)) return i;
  }
  void give_back(int64_t i) { taken_[i].clear(std::memory_order_release); }
  T *at(int64_t i) { return memory_ + i * values_; }

 private:
  int64_t count_;
  size_t values_;
  std::unique_ptr<std::atomic_flag[]> taken_;
  T *memory_;
};

}  // namespace san
