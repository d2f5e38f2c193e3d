// Rows of a map as planes, one per channel, for the kernels whose lanes are pixels.
#pragma once
#include "api.h"
#include "parallel.h"
#include "tasks.h"
#include "turn.h"

namespace san::planar {

constexpr int kHidden = 4, kGroups = 2, kValues = 16, kSide = 3, kNear = kSide * kSide;
constexpr int kRing = 3;                          // rows in use at a time

// Floats from one plane to the next for maps up to the width of the network's first stage: known
// to the compiler, so that a plane's address costs nothing. 0 stands for any width.
constexpr int64_t kCommonWidth = 112, kCommonPlane = kCommonWidth + 2 * kLanes;

// What of a call depends on neither the operator nor the pass. Relation: the compared channels.
template <int64_t kPlane, int Relation = kHidden> class PlanarMap {
 public:
  static constexpr int kRelation = Relation;
  static constexpr int kMerged = 2 * kRelation + kValues;  // channels: query, key, value
  static constexpr int kKey = kRelation, kValue = 2 * kRelation;

  const int64_t height, width;
  const bool reflected;

  template <class Args> explicit PlanarMap(const Args &args)
      : height(args.height), width(args.width), reflected(args.padding == kReflect),
        plane_((width + kLanes - 1) / kLanes * kLanes + 2 * kLanes) {}

  // Floats from one plane to the next, with room for a pixel beyond either end of a row.
  SAN_INLINE int64_t plane() const { return kPlane ? kPlane : plane_; }
  int count(int64_t x) const { return static_cast<int>(std::min<int64_t>(width - x, kLanes)); }
  bool inside(int64_t y) const { return y >= 0 && y < height; }

 private:
  const int64_t plane_;
};

// Puts into a plane what lies one pixel beyond either end of the row.
template <class Map> SAN_INLINE void continue_row(const Map &map, float *plane) {
  plane[-1] = map.reflected ? plane[1] : 0.0f;
  plane[map.width] = map.reflected ? plane[map.width - 2] : 0.0f;
}

// The last rows of planes seen, of one image; row y lies at y % kRing.
template <class Map> class Ring {
 public:
  Ring(const Map &map, float *memory, int planes)
      : map_(map), memory_(memory), planes_(planes) {}

  static size_t size(const Map &map, int planes) {
    return static_cast<size_t>(map.plane() * planes * kRing);
  }

  // The first plane of row y; pixel x of plane p is at [p * map.plane() + x].
  float *row(int64_t y) const {
    return memory_ + y % kRing * planes_ * map_.plane() + kLanes;
  }

 private:
  const Map &map_;
  float *memory_;
  int planes_;
};

// Turns `Channels` channels of a row of pixels into planes; gate(rows, x, channel) may change
// a block before it is turned.
template <int Channels, class Map, class Gate>
inline void read_row(const Map &map, const float *pixels, float *planes, const Gate &gate) {
  for (int64_t x = 0; x < map.width; x += kLanes)
    for (int c = 0; c < Channels; c += kBlock) {
      Pixels rows[kBlock];
      read_block(pixels + x * Channels + c, Channels, map.count(x), rows);
      gate(rows, x, c);
      turn(rows);
      SAN_UNROLL for (int q = 0; q < kBlock; q++)
        store<kLanes>(planes + (c + q) * map.plane() + x, rows[q]);
    }
}

// Rows of query, key and value around the one being computed.
template <class Map> class MergedRows {
  static constexpr int kMerged = Map::kMerged;

 public:
  MergedRows(const Map &map, float *memory)
      : map_(map), ring_(map, memory, kMerged),
        nothing_(memory + Ring<Map>::size(map, kMerged) + kLanes) {
    std::fill_n(nothing_ - kLanes, map.plane() * kMerged, 0.0f);
  }

  static size_t size(const Map &map) {
    return Ring<Map>::size(map, kMerged) + static_cast<size_t>(map.plane() * kMerged);
  }

  void start(const float *image) {
    image_ = image;
    next_ = -1;
  }

  // Planes of the rows y - 1, y, y + 1 of the continued map; y never decreases in an image.
  void around(int64_t y, const float *(&rows)[kSide]) {
    next_ = std::max(next_, std::max<int64_t>(y - 1, 0));
    for (; next_ <= std::min(y + 1, map_.height - 1); next_++) fetch(next_);
    for (int i = 0; i < kSide; i++) {
      const int64_t at = y + i - 1;
      const bool exists = map_.reflected || map_.inside(at);
      rows[i] = exists ? ring_.row(reflect(at, map_.height)) : nothing_;
    }
  }

 private:
  void fetch(int64_t y) {
    float *planes = ring_.row(y);
    read_row<kMerged>(map_, image_ + y * map_.width * kMerged, planes,
                      [](auto &, int64_t, int) {});
    for (int c = Map::kKey; c < kMerged; c++) continue_row(map_, planes + c * map_.plane());
  }

  const Map &map_;
  Ring<Map> ring_;
  float *nothing_;
  const float *image_ = nullptr;
  int64_t next_ = -1;
};

// A block of per-channel factors in the order of an unturned block.
SAN_INLINE Pixels per_channel(const float *factors, int channel) {
  return load_pair(factors + channel, factors + channel);
}

// The output of pixels x.. of a row: y as it is and, with scale, through the epilogue.
template <class Args>
SAN_INLINE void write_output(const Args &args, int64_t pixel, int count,
                             const Pixels (&sum)[kValues]) {
  float *y = static_cast<float *>(args.y), *out = static_cast<float *>(args.out);
  const auto *scale = static_cast<const float *>(args.scale);
  const auto *shift = static_cast<const float *>(args.shift);
  for (int c = 0; c < kValues; c += kBlock) {
    Pixels rows[kBlock];
    SAN_UNROLL for (int q = 0; q < kBlock; q++) rows[q] = sum[c + q];
    turn(rows);
    if (y) write_block(y + pixel * kValues + c, kValues, count, rows);
    if (!out) continue;
    if (scale) {
      const Pixels factor = per_channel(scale, c), offset = per_channel(shift, c);
      SAN_UNROLL for (int q = 0; q < kBlock; q++) rows[q] = relu<kLanes>(rows[q] * factor + offset);
    }
    write_block(out + pixel * kValues + c, kValues, count, rows);
  }
}

// Turns a row of the gradient of y into planes, which is 0 beyond the ends of the row.
template <class Args, class Map>
inline void read_gradient(const Args &args, const Map &map, int64_t pixel, float *planes) {
  const auto *grad = static_cast<const float *>(args.grad) + pixel * kValues;
  const auto *scale = static_cast<const float *>(args.scale);
  const auto *shift = static_cast<const float *>(args.shift);
  const auto *kept = static_cast<const float *>(keeps_out<Args> ? args.out : args.y) +
                     (scale ? pixel * kValues : 0);
  read_row<kValues>(map, grad, planes, [&](Pixels (&rows)[kBlock], int64_t x, int c) {
    if (!scale) return;
    Pixels gate[kBlock];
    read_block(kept + x * kValues + c, kValues, map.count(x), gate);
    const Pixels factor = per_channel(scale, c), offset = per_channel(shift, c);
    SAN_UNROLL for (int q = 0; q < kBlock; q++) {
      if (!keeps_out<Args>) gate[q] = gate[q] * factor + offset;
      rows[q] = keep_positive<kLanes>(rows[q] * factor, gate[q]);
    }
  });
}

// Rows computed by one task. Every row comes out the same wherever the bands end.
constexpr int64_t kBandRows = 28;

template <class Map> int64_t planar_bands(const Map &map) {
  return (map.height + kBandRows - 1) / kBandRows;
}

constexpr int kPatchwiseHidden = 2;
using Weights = Pixels[kNear][kGroups];

// Planes of a row whose gradient has been taken. An operator adds its own from kOwn on.
constexpr int kGradY = 0, kGradQuery = kValues;
template <class Map> constexpr int kOwn = kGradQuery + Map::kRelation;

SAN_INLINE Pixels at_plane(const float *row, int plane, int64_t stride) {
  return load<kLanes>(row + plane * stride);
}

// Calls visit(neighbour, first plane of the neighbour pixels).
template <class Visit> SAN_INLINE void each_near(const float *const (&rows)[kSide], int64_t x,
                                                 const Visit &visit) {
  SAN_UNROLL for (int i = 0; i < kSide; i++)
    SAN_UNROLL for (int j = 0; j < kSide; j++) visit(i * kSide + j, rows[i] + x + j - 1);
}

// Gradients of the weights: products of the gradient of y with the values.
template <class Map>
SAN_INLINE void value_slopes(const Map &map, const float *const (&rows)[kSide], int64_t x,
                             const float *source, Weights &slope) {
  Pixels grad[kValues];
  SAN_UNROLL for (int c = 0; c < kValues; c++)
    grad[c] = at_plane(source + x, kGradY + c, map.plane());
  for (int i = 0; i < kSide; i++)
    SAN_UNROLL for (int j = 0; j < kSide; j++) {
      const float *near = rows[i] + x + j - 1;
      Pixels sum[kGroups]{};
      SAN_UNROLL for (int c = 0; c < kValues; c++)
        sum[c % kGroups] += grad[c] * at_plane(near, Map::kValue + c, map.plane());
      SAN_UNROLL for (int g = 0; g < kGroups; g++) slope[i * kSide + j][g] = sum[g];
    }
}

}  // namespace san::planar
