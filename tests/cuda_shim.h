// Runs CUDA C++ kernels on a CPU: blocks one after another, the threads of a block as fibers.
// __syncthreads() switches to the next fiber; the order of fibers is another one in every round,
// so that a missing barrier shows. Kernels without barriers run in a plain loop, in that order.
// Shared memory is as large as asked for and starts as NaN. What this cannot show: bank conflicts,
// launch limits, races between fibers that happen to do no harm in the orders tried.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define SAN_SHIM
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __syncthreads() shim::barrier()
#define SAN_DYNAMIC_SHARED(name) char *const name = shim::shared_memory

struct Index3 {
  unsigned x, y, z;
};
static Index3 threadIdx, blockIdx, blockDim, gridDim;

using std::exp;
using std::max;
using std::min;

namespace shim {

constexpr size_t kStack = 128 * 1024;

static char *shared_memory;
static ucontext_t scheduler;
static unsigned running;
static bool fibers;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool finished;
};
static std::vector<Fiber> pool;
static void (*body)(void *);
static void *closure;

static void enter() {
  body(closure);
  pool[running].finished = true;
}

static void barrier() {
  if (!fibers) {
    fprintf(stderr, "__syncthreads in a kernel announced without\n");
    abort();
  }
  swapcontext(&pool[running].context, &scheduler);
}

static void start_fiber(Fiber &fiber) {
  fiber.finished = false;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = &scheduler;
  makecontext(&fiber.context, enter, 0);
}

// Runs all fibers from one barrier to the next; all must meet it or all must be done.
static void run_fibers(std::vector<unsigned> &order, std::mt19937 &random) {
  for (unsigned thread : order) start_fiber(pool[thread]);
  for (size_t finished = 0; finished == 0;) {
    std::shuffle(order.begin(), order.end(), random);
    for (unsigned thread : order) {
      running = threadIdx.x = thread;
      swapcontext(&scheduler, &pool[thread].context);
      finished += pool[thread].finished;
    }
    if (finished != 0 && finished != order.size()) {
      fprintf(stderr, "some threads left while others wait at a barrier\n");
      abort();
    }
  }
}

template <class Kernel>
void launch(unsigned blocks, unsigned threads, size_t shared, bool barriers, unsigned seed,
            Kernel kernel) {
  std::mt19937 random(seed);
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  if (barriers && pool.size() < threads) pool.resize(threads);
  gridDim = {blocks, 1, 1};
  blockDim = {threads, 1, 1};
  fibers = barriers;
  closure = &kernel;
  body = [](void *self) { (*static_cast<Kernel *>(self))(); };
  // Of exactly this size, so that an address sanitizer sees the first byte beyond.
  shared_memory = shared ? static_cast<char *>(aligned_alloc(16, (shared + 15) / 16 * 16)) : nullptr;
  for (unsigned block = 0; block < blocks; block++) {
    blockIdx = {block, 0, 0};
    if (shared) memset(shared_memory, 0xff, shared);
    if (barriers) {
      run_fibers(order, random);
      continue;
    }
    std::shuffle(order.begin(), order.end(), random);
    for (unsigned thread : order) {
      threadIdx.x = thread;
      kernel();
    }
  }
  free(shared_memory);
}

inline float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float bfloat16_to_float(uint16_t bits) { return as_float(static_cast<uint32_t>(bits) << 16); }
inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = as_bits(value);
  if (value != value) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float value = exponent == 31 ? (fraction ? NAN : INFINITY)
      : exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return bits & 0x8000 ? -value : value;
}
inline uint16_t float_to_half(float value) {
  const uint16_t sign = as_bits(value) >> 16 & 0x8000;
  const float size = std::fabs(value);
  if (value != value) return 0x7fff;
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size < 6.103515625e-05f)  // multiples of 2^-24, the last one the least normal number
    return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 24)));
  int exponent;
  const float fraction = std::frexp(size, &exponent);  // in [1/2, 1)
  return sign | static_cast<uint16_t>(((exponent + 13) << 10)
      + static_cast<int>(std::nearbyint(std::ldexp(fraction, 11))));
}

}  // namespace shim
