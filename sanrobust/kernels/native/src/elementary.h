// The elementary operators: any stride, dilation and odd footprint, float and double.
#pragma once
#include "api.h"

namespace san {

int aggregation_forward(const ElementaryArgs &);
int aggregation_backward(const ElementaryArgs &);
int subtraction_forward(const ElementaryArgs &);
int subtraction_backward(const ElementaryArgs &);

}  // namespace san
