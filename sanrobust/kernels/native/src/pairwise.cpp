// Compiled once for every width (-DSAN_RELATION=16 ...), and once without for the choice.
#include "pairwise.h"

#if defined(SAN_RELATION)
#include "pairwise_backward.h"
#include "pairwise_forward.h"

namespace san {

template <int Width> void pairwise_forward_of(const PairwiseArgs &args) {
  PairwiseForward<Width>(args).run();
}
template <int Width> void pairwise_backward_of(const PairwiseArgs &args) {
  PairwiseBackward<Width>(args).run();
}
template void pairwise_forward_of<SAN_RELATION>(const PairwiseArgs &);
template void pairwise_backward_of<SAN_RELATION>(const PairwiseArgs &);

}  // namespace san

#else
#include "pairwise_map.h"

namespace san {

// The width of hidden layers, as groups are half as many; the networks without one have it too.
static int width_of(const PairwiseArgs &args) { return 2 * args.groups; }

bool pairwise_takes(const PairwiseArgs &args) {
  const int width = width_of(args);
  const bool sized = width == 16 || width == 32 || width == 64 || width == 128;
  return sized && args.element == kFloat && args.relation % width == 0 && args.relation > 0 &&
         args.relation <= kMostParts * width && args.channels == 8 * args.groups &&
         args.hidden == (args.mapping == kL ? args.groups : width) &&
         args.footprint % 2 == 1 && args.footprint >= 3 && args.footprint <= 11 &&
         (args.padding == kReflect || args.padding == kZeros);
}

int pairwise_forward(const PairwiseArgs &args) {
  switch (width_of(args)) {
    case 16: pairwise_forward_of<16>(args); return kOk;
    case 32: pairwise_forward_of<32>(args); return kOk;
    case 64: pairwise_forward_of<64>(args); return kOk;
    case 128: pairwise_forward_of<128>(args); return kOk;
    default: return kUnsupported;
  }
}

int pairwise_backward(const PairwiseArgs &args) {
  switch (width_of(args)) {
    case 16: pairwise_backward_of<16>(args); return kOk;
    case 32: pairwise_backward_of<32>(args); return kOk;
    case 64: pairwise_backward_of<64>(args); return kOk;
    case 128: pairwise_backward_of<128>(args); return kOk;
    default: return kUnsupported;
  }
}

}  // namespace san
#endif
