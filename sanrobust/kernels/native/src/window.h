// A window that moves over a map, for kernels whose lanes are channels.
//
// With reflection a border pixel meets some neighbours more than once. What belongs to those is
// summed first (`fold`), so that neighbours are visited once and only inside the map; on the way
// back it is copied to each of them (`unfold`).
#pragma once
#include <utility>

#include "parallel.h"
#include "simd.h"

namespace san {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorRegisters = 16;
#endif

// The part of a window that lies inside the map, along one axis, as steps of the footprint.
struct Clip {
  int first, end;
  Clip(int64_t i, int64_t side, int reach)
      : first(static_cast<int>(std::max<int64_t>(0, reach - i))),
        end(static_cast<int>(std::min<int64_t>(2 * reach + 1, side - i + reach))) {}
};

// Calls inside(j, row, column) for each neighbour j of a pixel, outside(j) where it has none.
template <class Args, class Inside, class Outside>
inline void each_neighbour(const Args &args, int64_t y, int64_t x, const Inside &inside,
                           const Outside &outside) {
  const int reach = args.footprint / 2;
  for (int j = 0; j < args.footprint * args.footprint; j++) {
    const int64_t down = y + j / args.footprint - reach, across = x + j % args.footprint - reach;
    const bool beyond = down < 0 || down >= args.height || across < 0 || across >= args.width;
    if (beyond && args.padding != kReflect) outside(j);
    else inside(j, reflect(down, args.height), reflect(across, args.width));
  }
}

// Groups: floats of a pixel's neighbour in what is folded, [neighbour][Groups].
template <int Groups> class Window {
 protected:
  template <class Args>
  explicit Window(const Args &args)
      : footprint_(args.footprint), reach_(args.footprint / 2),
        near_(args.footprint * args.footprint), height_(args.height), width_(args.width),
        reflected_(args.padding == kReflect) {}

  // Adds the weights of neighbours beyond the border to those of the pixels they reflect.
  void fold(int64_t y, int64_t x, float *weights) const {
    if (!reflected_) return;
    const Clip down(y, height_, reach_), across(x, width_, reach_);
    each_beyond(down, [&](int dy) {
      const int to = mirror(y, dy, height_);
      for (int dx = 0; dx < footprint_; dx++) add(weights, dy, dx, to, dx);
    });
    each_beyond(across, [&](int dx) {
      const int to = mirror(x, dx, width_);
      for (int dy = down.first; dy < down.end; dy++) add(weights, dy, dx, dy, to);
    });
  }

  // Gives neighbours beyond the border what the pixels they reflect have; 0 with zero padding.
  void unfold(int64_t y, int64_t x, float *slopes) const {
    const Clip down(y, height_, reach_), across(x, width_, reach_);
    each_beyond(across, [&](int dx) {
      const int from = reflected_ ? mirror(x, dx, width_) : 0;
      for (int dy = down.first; dy < down.end; dy++) copy(slopes, dy, from, 1, dy, dx);
    });
    each_beyond(down, [&](int dy) {
      copy(slopes, reflected_ ? mirror(y, dy, height_) : 0, 0, footprint_, dy, 0);
    });
  }

  // Calls body(j, has...) for j in [from, end) within reach of any of i .. i + Count - 1, in rising
  // order; has... say, as types, of which of them. Count is at most the reach + 1.
  template <int Count, class Body>
  SAN_INLINE void each_within(int64_t i, int64_t from, int64_t end, const Body &body) const {
    int64_t j = std::max(from, i - reach_);
    each_edge<Count, 0>(j, i - reach_, end, body, std::make_integer_sequence<int, Count - 1>{});
    for (const int64_t shared = std::min(end, i + reach_ + 1); j < shared; j++)
      call<Count, 0, Count>(body, j, std::make_integer_sequence<int, Count>{});
    each_edge<Count, 1>(j, i + reach_ + 1, end, body, std::make_integer_sequence<int, Count - 1>{});
  }

  // Calls body(i, constant count) for all i in [0, end), at most `Together` at a time.
  template <int Together, class Body>
  SAN_INLINE void each_together(int64_t end, const Body &body) const {
    int64_t i = 0;
    if constexpr (Together >= 4)
      if (reach_ >= 3)
        for (; i + 4 <= end; i += 4) body(i, std::integral_constant<int, 4>{});
    if constexpr (Together >= 2)
      if (reach_ >= 1)
        for (; i + 2 <= end; i += 2) body(i, std::integral_constant<int, 2>{});
    for (; i < end; i++) body(i, std::integral_constant<int, 1>{});
  }

  const int footprint_, reach_, near_;
  const int64_t height_, width_;
  const bool reflected_;

 private:
  template <class Body> SAN_INLINE void each_beyond(const Clip &inside, const Body &body) const {
    for (int d = 0; d < inside.first; d++) body(d);
    for (int d = inside.end; d < footprint_; d++) body(d);
  }

  // The steps before all pixels are within reach, or after.
  template <int Count, int After, class Body, int... Steps>
  static SAN_INLINE void each_edge(int64_t &j, int64_t first, int64_t end, const Body &body,
                                   std::integer_sequence<int, Steps...>) {
    ((j == first + Steps && j < end
          ? call<Count, After * (Steps + 1), After ? Count : Steps + 1>(
                body, j++, std::make_integer_sequence<int, Count>{})
          : void()), ...);
  }

  template <int Count, int First, int Last, class Body, int... I>
  static SAN_INLINE void call(const Body &body, int64_t j, std::integer_sequence<int, I...>) {
    body(j, std::bool_constant<(I >= First && I < Last)>{}...);
  }

  // The step that leads to the same pixel as the step d beyond the border.
  int mirror(int64_t i, int d, int64_t side) const {
    return static_cast<int>(reflect(i + d - reach_, side) - i) + reach_;
  }
  float *at(float *weights, int dy, int dx) const {
    return weights + (dy * footprint_ + dx) * Groups;
  }

  void add(float *weights, int dy, int dx, int to_y, int to_x) const {
    constexpr int lanes = Groups < kLanes ? Groups : kLanes;
    const float *from = at(weights, dy, dx);
    float *to = at(weights, to_y, to_x);
    if constexpr (Groups == 1) *to += *from;
    else
      for (int s = 0; s < Groups; s += lanes)
        store<lanes>(to + s, load<lanes>(to + s) + load<lanes>(from + s));
  }

  void copy(float *slopes, int from_y, int from_x, int count, int dy, int dx) const {
    float *to = at(slopes, dy, dx);
    if (reflected_)
      memcpy(to, at(slopes, from_y, from_x), sizeof(float) * static_cast<size_t>(count * Groups));
    else std::fill_n(to, count * Groups, 0.0f);
  }
};

}  // namespace san
