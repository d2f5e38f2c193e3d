// Compiled once for every relation (-DSAN_RELATION=16 ...), and once without for the choice.
#include "pairwise.h"

#if defined(SAN_RELATION)
#include "pairwise_backward.h"
#include "pairwise_forward.h"

namespace san {

template <int Relation> void pairwise_forward_of(const PairwiseArgs &args) {
  PairwiseForward<Relation>(args).run();
}
template <int Relation> void pairwise_backward_of(const PairwiseArgs &args) {
  PairwiseBackward<Relation>(args).run();
}
template void pairwise_forward_of<SAN_RELATION>(const PairwiseArgs &);
template void pairwise_backward_of<SAN_RELATION>(const PairwiseArgs &);

}  // namespace san

#else

namespace san {

bool pairwise_takes(const PairwiseArgs &args) {
  const int relation = args.relation;
  const bool sized = relation == 16 || relation == 32 || relation == 64 || relation == 128;
  return sized && args.element == kFloat && args.hidden == relation &&
         args.groups == relation / 2 && args.channels == 8 * args.groups &&
         args.footprint % 2 == 1 && args.footprint >= 3 && args.footprint <= 11 &&
         (args.padding == kReflect || args.padding == kZeros);
}

int pairwise_forward(const PairwiseArgs &args) {
  switch (args.relation) {
    case 16: pairwise_forward_of<16>(args); return kOk;
    case 32: pairwise_forward_of<32>(args); return kOk;
    case 64: pairwise_forward_of<64>(args); return kOk;
    case 128: pairwise_forward_of<128>(args); return kOk;
    default: return kUnsupported;
  }
}

int pairwise_backward(const PairwiseArgs &args) {
  switch (args.relation) {
    case 16: pairwise_backward_of<16>(args); return kOk;
    case 32: pairwise_backward_of<32>(args); return kOk;
    case 64: pairwise_backward_of<64>(args); return kOk;
    case 128: pairwise_backward_of<128>(args); return kOk;
    default: return kUnsupported;
  }
}

}  // namespace san
#endif
