// The attention operators at any shape, in float and double; backward computes everything anew.
#pragma once
#include "api.h"

namespace san {

int generic_forward(const PairwiseArgs &);
int generic_backward(const PairwiseArgs &);
int generic_moments(const PairwiseArgs &);
int generic_moments_backward(const PairwiseArgs &);
int generic_forward(const PatchwiseArgs &);
int generic_backward(const PatchwiseArgs &);
int generic_forward(const LocalArgs &);
int generic_backward(const LocalArgs &);

}  // namespace san
