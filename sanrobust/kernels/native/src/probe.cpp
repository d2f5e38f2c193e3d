// How fast this machine multiplies and adds right now: the yardstick of every timing.
#include <chrono>

#include "api.h"
#include "parallel.h"
#include "simd.h"

namespace san {
namespace {

constexpr int kChains = 12;    // enough to hide the latency of a multiply-add
constexpr int kSteps = 4096;   // between looks at the clock

// Read at run time: a chain that the compiler can foresee is not computed.
volatile float factor = 0.9999f, term = 0.0001f;

SAN_INLINE void advance(Vec<kLanes> (&chains)[kChains], float by, float plus) {
  for (int step = 0; step < kSteps; step++) {
    SAN_UNROLL for (int i = 0; i < kChains; i++) chains[i] = chains[i] * by + plus;
  }
}

// GFLOP/s of one thread over about `seconds`. The chains stay near 1, so no step is slowed by
// subnormal numbers; their sum is used, so no step is optimised away.
double rate(double seconds, float *sum) {
  using Clock = std::chrono::steady_clock;
  const float by = factor, plus = term;
  Vec<kLanes> chains[kChains];
  for (int i = 0; i < kChains; i++) chains[i] = Vec<kLanes>{} + (1.0f + 0.01f * i);
  const auto start = Clock::now();
  double elapsed = 0;
  int64_t rounds = 0;
  while (elapsed < seconds || rounds == 0) {
    advance(chains, by, plus);
    rounds++;
    elapsed = std::chrono::duration<double>(Clock::now() - start).count();
  }
  for (int i = 0; i < kChains; i++) *sum += chains[i][0];
  return 2e-9 * kLanes * kChains * kSteps * static_cast<double>(rounds) / elapsed;
}

}  // namespace
}  // namespace san

extern "C" double sanrobust_probe(int threads, double seconds) {
  constexpr int kMost = 1024;
  static thread_local double rates[kMost];
  static thread_local float sums[kMost];
  threads = std::max(1, std::min(threads, kMost));
  double *const rate_of = rates;
  float *const sum_of = sums;
  san::parallel_for(threads, threads, [=](int64_t task) {
    sum_of[task] = 0;
    rate_of[task] = san::rate(seconds, &sum_of[task]);
  });
  double total = 0;
  for (int task = 0; task < threads; task++) total += sums[task] > 0 ? rates[task] : 0;
  return total;
}
