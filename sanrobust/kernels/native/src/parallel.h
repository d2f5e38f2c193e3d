// Threads, scratch memory, and how a map is cut. No result depends on the number of threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#if defined(__SANITIZE_THREAD__)
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif

namespace san {

// Tasks that follow one another.
struct Range {
  int64_t begin, end;
  explicit operator bool() const { return begin < end; }
};

// Tasks shared out among threads, to each a range of its own; a thread that has done its range goes
// on with those of others. So a thread meets the same rows of maps of equal size in one call after
// another: a line that only one core has read is cheap to write, one that several have is not.
class Shares {
 public:
  Shares(int64_t tasks, int threads) : threads_(threads), shares_(new Share[threads]) {
    for (int i = 0; i < threads; i++) {
      shares_[i].next = tasks * i / threads;
      shares_[i].end = tasks * (i + 1) / threads;
    }
  }
  // Up to `most` tasks for `worker`, fewer towards the end of a range, so that threads end
  // together; none when all are taken.
  Range take(int worker, int64_t most) {
    for (int i = 0; i < threads_; i++) {
      Share &share = shares_[(worker + i) % threads_];
      int64_t begin = share.next.load(std::memory_order_relaxed);
      while (begin < share.end) {
        const int64_t end = begin + std::min(most, (share.end - begin + 1) / 2);
        if (share.next.compare_exchange_weak(begin, end, std::memory_order_relaxed))
          return {begin, end};
      }
    }
    return {0, 0};
  }

 private:
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  const int threads_;
  const std::unique_ptr<Share[]> shares_;
};

// Runs body(worker) once on each of up to `threads` threads, worker in [0, threads). The thread
// sanitizer does not see where OpenMP's threads wait for each other.
template <class Body> void parallel_team(int threads, const Body &body) {
#if defined(__SANITIZE_THREAD__)
  std::vector<std::thread> others;
  for (int worker = 1; worker < threads; worker++) others.emplace_back([&, worker] { body(worker); });
  body(0);
  for (auto &each : others) each.join();
  return;
#elif defined(_OPENMP)
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    body(omp_get_thread_num());
    return;
  }
#endif
  body(0);
}

// Runs body(task, worker) for every task in [0, tasks) on up to `threads` threads, in any order;
// worker in [0, threads) is the running thread, as which it owns private buffers.
template <class Body> void parallel_workers(int64_t tasks, int threads, const Body &body) {
  const int team = tasks > 1 ? std::max(1, threads) : 1;
  Shares shares(tasks, team);
  parallel_team(team, [&](int worker) {
    while (const Range one = shares.take(worker, 1)) body(one.begin, worker);
  });
}

// The same with body(task).
template <class Body> void parallel_for(int64_t tasks, int threads, const Body &body) {
  parallel_workers(tasks, threads, [&](int64_t task, int) { body(task); });
}

// Memory of one thread that is kept between calls; `slot` tells apart buffers in use together.
template <class T> T *scratch(int slot, size_t count) {
  struct Block {
    void *memory = nullptr;
    size_t bytes = 0;
    ~Block() { free(memory); }
  };
  static thread_local Block blocks[4];
  Block &block = blocks[slot];
  const size_t bytes = (count * sizeof(T) + 127) / 64 * 64;
  if (bytes > block.bytes) {
    free(block.memory);
    block.memory = aligned_alloc(64, bytes);
    block.bytes = block.memory ? bytes : 0;
    if (!block.memory) throw std::bad_alloc();
  }
  return static_cast<T *>(block.memory);
}

// Bands of rows in which a map's backward pass is cut. The map alone decides it, so the order of
// the sums never depends on batch size or threads.
inline int band_count(int64_t height) { return height < 12 ? 1 : height < 24 ? 2 : 4; }

// The index of position i of a map of n pixels continued by reflection.
inline int64_t reflect(int64_t i, int64_t n) {
  while (i < 0 || i >= n) i = i < 0 ? -i : 2 * (n - 1) - i;
  return i;
}

// How often pixel j occurs among the positions i - reach .. i + reach continued by reflection.
inline int multiplicity(int64_t i, int64_t j, int64_t n, int reach) {
  int count = 0;
  for (int d = -reach; d <= reach; d++) count += reflect(i + d, n) == j;
  return count;
}

}  // namespace san
