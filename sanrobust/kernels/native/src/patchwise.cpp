// Compiled once for every relation (-DSAN_RELATION=16 ...), and once without for the choice.
#include "patchwise.h"

#if defined(SAN_RELATION)
#include "patchwise_backward.h"
#include "patchwise_forward.h"

namespace san {

template <int Relation> void patchwise_forward_of(const PatchwiseArgs &args) {
  patchwise::Forward<Relation>(args).run();
}
template <int Relation> void patchwise_backward_of(const PatchwiseArgs &args) {
  patchwise::Backward<Relation>(args).run();
}
template void patchwise_forward_of<SAN_RELATION>(const PatchwiseArgs &);
template void patchwise_backward_of<SAN_RELATION>(const PatchwiseArgs &);

}  // namespace san

#else
#include "tile.h"

namespace san {

bool patchwise_takes(const PatchwiseArgs &args) {
  const int relation = args.relation;
  const bool sized = relation == 16 || relation == 32 || relation == 64 || relation == 128;
  return sized && args.element == kFloat && args.hidden == relation / 2 &&
         args.groups == relation / 2 && args.channels == 8 * args.groups &&
         args.footprint % 2 == 1 && args.footprint >= 3 && args.footprint <= 11 &&
         (args.padding == kReflect || args.padding == kZeros);
}

int patchwise_forward(const PatchwiseArgs &args) {
  return with_width(args.relation,
                    [&](auto width) { patchwise_forward_of<decltype(width)::value>(args); });
}

int patchwise_backward(const PatchwiseArgs &args) {
  return with_width(args.relation,
                    [&](auto width) { patchwise_backward_of<decltype(width)::value>(args); });
}

}  // namespace san
#endif
