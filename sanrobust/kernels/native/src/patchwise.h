// The tuned patchwise kernels: float, the shapes of the paper's networks, any footprint 3..11.
#pragma once
#include "api.h"

namespace san {

bool patchwise_takes(const PatchwiseArgs &args);
int patchwise_forward(const PatchwiseArgs &args);
int patchwise_backward(const PatchwiseArgs &args);

// One object each, of patchwise.cpp with SAN_RELATION defined.
template <int Relation> void patchwise_forward_of(const PatchwiseArgs &args);
template <int Relation> void patchwise_backward_of(const PatchwiseArgs &args);

}  // namespace san
