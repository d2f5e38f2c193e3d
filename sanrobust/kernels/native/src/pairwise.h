// The tuned pairwise kernels: float, the shapes of the paper's networks, any footprint 3..11.
#pragma once
#include "api.h"

namespace san {

bool pairwise_takes(const PairwiseArgs &args);
int pairwise_forward(const PairwiseArgs &args);
int pairwise_backward(const PairwiseArgs &args);
int pairwise_moments(const PairwiseArgs &args);

// One object each, of pairwise.cpp with SAN_RELATION defined.
template <int Width> void pairwise_forward_of(const PairwiseArgs &args);
template <int Width> void pairwise_backward_of(const PairwiseArgs &args);
template <int Width> void pairwise_moments_of(const PairwiseArgs &args);

}  // namespace san
