// Who computes a call: the planar kernels, the tuned ones, or the generic ones.
#include <new>

#include "api.h"
#include "elementary.h"
#include "generic.h"
#include "local.h"
#include "pairwise.h"
#include "patchwise.h"
#include "planar.h"
#include "simd.h"

namespace {

enum Kernel : int { kGeneric = 0, kTuned = 1, kPlanar = 2 };

Kernel kernel_for(const PairwiseArgs &args) {
  if (args.element != kFloat) return kGeneric;
  const bool learns = args.grad_table || args.moments;
  if (!learns && san::planar_takes(args)) return kPlanar;
  return san::pairwise_takes(args) ? kTuned : kGeneric;
}

Kernel kernel_for(const PatchwiseArgs &args) {
  if (args.element != kFloat) return kGeneric;
  const bool in_halves = (!args.w1 && args.h) || args.hidden_alone;
  if (!in_halves && san::planar_takes(args)) return kPlanar;
  return san::patchwise_takes(args) ? kTuned : kGeneric;
}

Kernel kernel_for(const LocalArgs &args) { return san::local_takes(args) ? kTuned : kGeneric; }

// Whether an operator is one of those in api.h, with all that it reads.
bool is_complete(const LocalArgs &args) {
  if (args.keys != 0 && args.keys != args.relation) return false;
  if (args.keys == 0 && !args.embedding) return false;
  if (args.groups < 1 || args.relation % args.groups || args.channels % args.groups) return false;
  return !args.embedding || args.relation % (2 * args.groups) == 0;
}

// Whether an operator is one whose mapping can be trained.
bool learns(const PairwiseArgs &args) {
  return args.delta == kSubtraction && args.mapping == kLRL && !args.table_per_pixel &&
         !args.table_by_place &&
         (args.moments || (args.grad_w1t && args.grad_table && (args.slope || args.grad_w2t)));
}

bool is_complete(const PairwiseArgs &args) {
  if (args.delta < kSubtraction || args.delta > kConcatenation) return false;
  if (args.mapping < kLRL || args.mapping > kLRLRL) return false;
  if (args.mapping == kL && args.hidden != args.groups) return false;
  if (args.delta == kConcatenation && args.hidden > args.relation) return false;
  if ((args.delta == kHadamard || args.delta == kDot) && !args.offset) return false;
  if ((args.grad_table || args.moments || args.slope) && !learns(args)) return false;
  return args.mapping != kLRLRL || (args.w_mid && args.w_mid_t && args.b_mid);
}

// Nothing may be thrown through the C interface.
template <class Args> int guarded(int (*compute)(const Args &), const Args *args) {
  try {
    return compute(*args);
  } catch (const std::bad_alloc &) {
    return kOutOfMemory;
  }
}

int forward(const PairwiseArgs &args) {
  if (!is_complete(args)) return kUnsupported;
  switch (kernel_for(args)) {
    case kPlanar: return san::planar_forward(args);
    case kTuned: return san::pairwise_forward(args);
    default: return san::generic_forward(args);
  }
}

int backward(const PairwiseArgs &args) {
  if (!is_complete(args)) return kUnsupported;
  switch (kernel_for(args)) {
    case kPlanar: return san::planar_backward(args);
    case kTuned: return san::pairwise_backward(args);
    default: return san::generic_backward(args);
  }
}

int moments_forward(const PairwiseArgs &args) {
  if (!args.moments || !is_complete(args)) return kUnsupported;
  return kernel_for(args) == kTuned ? san::pairwise_moments(args) : san::generic_moments(args);
}

int moments_backward(const PairwiseArgs &args) {
  if (!args.slope || !is_complete(args)) return kUnsupported;
  return kernel_for(args) == kTuned ? san::pairwise_backward(args)
                                    : san::generic_moments_backward(args);
}

// The first product with what it reads, or the hidden layer in its place.
bool is_complete(const PatchwiseArgs &args, bool backward) {
  if (!args.grad_w1t != !args.grad_key_scale || !args.grad_w1t != !args.grad_key_shift ||
      !args.grad_w2t != !args.grad_b2 || (args.grad_w1t && !args.hidden_alone) ||
      (args.grad_w2t && args.w1))
    return false;
  if (args.adds && !args.hidden_alone) return false;
  if (args.hidden_alone && (!args.w1 || !(backward ? args.grad : args.h))) return false;
  if (args.w1) return args.w1t && args.b1 && args.key_scale && args.key_shift;
  return args.h && (args.grad_h || !backward);
}

int forward(const PatchwiseArgs &args) {
  if (!is_complete(args, false)) return kUnsupported;
  switch (kernel_for(args)) {
    case kPlanar: return san::planar_forward(args);
    case kTuned: return san::patchwise_forward(args);
    default: return san::generic_forward(args);
  }
}

int backward(const PatchwiseArgs &args) {
  if (!is_complete(args, true)) return kUnsupported;
  switch (kernel_for(args)) {
    case kPlanar: return san::planar_backward(args);
    case kTuned: return san::patchwise_backward(args);
    default: return san::generic_backward(args);
  }
}

int forward(const LocalArgs &args) {
  if (!is_complete(args)) return kUnsupported;
  return kernel_for(args) == kTuned ? san::local_forward(args) : san::generic_forward(args);
}

int backward(const LocalArgs &args) {
  if (!is_complete(args) || (args.scale && !args.out)) return kUnsupported;
  return kernel_for(args) == kTuned ? san::local_backward(args) : san::generic_backward(args);
}

}  // namespace

extern "C" {

int sanrobust_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx2 ? (avx512 ? 2 : 1) : 0;
#else
  return 0;
#endif
}

int sanrobust_lanes() { return san::kLanes; }

int sanrobust_pairwise_tuned(const PairwiseArgs *args) { return kernel_for(*args); }
int sanrobust_patchwise_tuned(const PatchwiseArgs *args) { return kernel_for(*args); }

int sanrobust_pairwise_forward(const PairwiseArgs *args) { return guarded(forward, args); }
int sanrobust_pairwise_backward(const PairwiseArgs *args) { return guarded(backward, args); }
int sanrobust_moments_forward(const PairwiseArgs *args) { return guarded(moments_forward, args); }
int sanrobust_moments_backward(const PairwiseArgs *args) {
  return guarded(moments_backward, args);
}
int sanrobust_patchwise_forward(const PatchwiseArgs *args) { return guarded(forward, args); }
int sanrobust_patchwise_backward(const PatchwiseArgs *args) { return guarded(backward, args); }

int sanrobust_dots_forward(const DotsArgs *args) { return guarded(san::dots_forward, args); }
int sanrobust_dots_backward(const DotsArgs *args) { return guarded(san::dots_backward, args); }
int sanrobust_local_tuned(const LocalArgs *args) { return kernel_for(*args); }
int sanrobust_local_forward(const LocalArgs *args) { return guarded(forward, args); }
int sanrobust_local_backward(const LocalArgs *args) { return guarded(backward, args); }

int sanrobust_aggregation_forward(const ElementaryArgs *args) {
  return guarded(san::aggregation_forward, args);
}
int sanrobust_aggregation_backward(const ElementaryArgs *args) {
  return guarded(san::aggregation_backward, args);
}
int sanrobust_subtraction_forward(const ElementaryArgs *args) {
  return guarded(san::subtraction_forward, args);
}
int sanrobust_subtraction_backward(const ElementaryArgs *args) {
  return guarded(san::subtraction_backward, args);
}

}  // extern "C"
