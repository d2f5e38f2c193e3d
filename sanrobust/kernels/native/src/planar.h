// Attention with 4 relation channels, 2 groups, 16 value channels and a 3x3 footprint, as in the
// first stage of the network: too narrow to fill vectors with channels, so lanes are pixels.
#pragma once
#include "api.h"

namespace san {

bool planar_takes(const PairwiseArgs &args);
bool planar_takes(const PatchwiseArgs &args);
int planar_forward(const PairwiseArgs &args);
int planar_forward(const PatchwiseArgs &args);
int planar_backward(const PairwiseArgs &args);
int planar_backward(const PatchwiseArgs &args);

}  // namespace san
