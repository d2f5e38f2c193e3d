// Scalar attention of float maps whose channels fill vectors; `local_takes` says which.
#pragma once
#include "api.h"

namespace san {

bool local_takes(const LocalArgs &);
int local_forward(const LocalArgs &);
int local_backward(const LocalArgs &);
int dots_forward(const DotsArgs &);   // any channels
int dots_backward(const DotsArgs &);

}  // namespace san
