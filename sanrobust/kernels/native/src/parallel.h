// Threads, scratch memory, and how a map is cut. No result depends on the number of threads.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace san {

// Runs body(task) for every task in [0, tasks) on up to `threads` threads, in any order.
template <class Body> void parallel_for(int64_t tasks, int threads, const Body &body) {
  if (threads <= 1 || tasks <= 1) {
    for (int64_t task = 0; task < tasks; task++) body(task);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t task = 0; task < tasks; task++) body(task);
}

// The same with body(task, worker), worker in [0, threads): which of the private buffers that the
// caller made before the loop belongs to the running thread.
template <class Body> void parallel_workers(int64_t tasks, int threads, const Body &body) {
#if defined(_OPENMP)
  if (threads > 1 && tasks > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t task = 0; task < tasks; task++) body(task, omp_get_thread_num());
    return;
  }
#endif
  for (int64_t task = 0; task < tasks; task++) body(task, 0);
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
