// Scalar attention of float maps whose channels fill vectors; `local_takes` says which.
#pragma once
#include "api.h"

namespace san {

bool local_takes(const LocalArgs &);
int local_forward(const LocalArgs &);
int local_backward(const LocalArgs &);

}  // namespace san
