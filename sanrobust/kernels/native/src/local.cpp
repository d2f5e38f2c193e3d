#include "local.h"

#include "clique.h"
#include "local_dots.h"
#include "local_forward.h"

namespace san {
namespace {

constexpr int kMostHeads = 8;

// Calls pass(integral_constant of the heads).
template <class Pass> int with_heads(const LocalArgs &args, const Pass &pass) {
  if (args.groups == 1) pass(std::integral_constant<int, 1>{});
  else pass(std::integral_constant<int, kLanes < kMostHeads ? 1 : kMostHeads>{});
  return kOk;
}

}  // namespace

bool local_takes(const LocalArgs &args) {
  const bool headed = args.groups == 1 || (args.groups == kMostHeads && kMostHeads <= kLanes);
  const int unit = args.embedding ? 2 * kLanes : kLanes;
  return headed && args.element == kFloat && args.relation % unit == 0 &&
         args.channels % kLanes == 0 && args.footprint % 2 == 1;
}

int local_forward(const LocalArgs &args) {
  return with_heads(args, [&](auto heads) { local::Forward<decltype(heads)::value>(args).run(); });
}

int local_backward(const LocalArgs &args) {
  return with_heads(args, [&](auto heads) { local::Backward<decltype(heads)::value>(args).run(); });
}

int dots_forward(const DotsArgs &args) {
  if (args.clique) local::Clique(args).forward();
  else local::Dots(args).forward();
  return kOk;
}

int dots_backward(const DotsArgs &args) {
  if (args.clique) local::Clique(args).backward();
  else local::Dots(args).backward();
  return kOk;
}

}  // namespace san
