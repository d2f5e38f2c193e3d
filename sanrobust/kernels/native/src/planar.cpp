#include "planar.h"

#include "planar_pairwise.h"
#include "planar_patchwise.h"

namespace san {
namespace planar {
namespace {

// -------------------------------------------------------------------------------- forward

template <class Operator, class Args, class Map>
void forward_row(const Operator &op, const Args &args, const Map &map,
                 const float *const (&rows)[kSide], int64_t y, int64_t first_pixel) {
  for (int64_t x = 0; x < map.width; x += kLanes) {
    Weights weights;
    op.weigh(rows, y, x, weights);
    Pixels sum[kValues]{};
    each_near(rows, x, [&](int n, const float *near) {
      SAN_UNROLL for (int c = 0; c < kValues; c++)
        sum[c] += weights[n][c % kGroups] * at_plane(near, Map::kValue + c, map.plane());
    });
    write_output(args, first_pixel + x, map.count(x), sum);
  }
}

template <class Operator, class Map, class Args> int forward(const Args &args, const Map &map) {
  const Operator op(args, map);
  const int64_t bands = planar_bands(map);
  share_tasks(args.images * bands, args.threads, MergedRows<Map>::size(map),
              [&](int64_t task, float *memory) {
    const int64_t image = task / bands, first = task % bands * kBandRows;
    const auto *qkv = static_cast<const float *>(args.qkv);
    MergedRows<Map> merged(map, memory);
    merged.start(qkv + image * map.height * map.width * Map::kMerged);
    for (int64_t y = first; y < std::min(map.height, first + kBandRows); y++) {
      const float *rows[kSide];
      merged.around(y, rows);
      forward_row(op, args, map, rows, y, (image * map.height + y) * map.width);
    }
  });
  return kOk;
}

// ------------------------------------------------------------------------------- backward

// Gradients of a band of rows. Those of keys and values are gathered by each pixel from the
// pixels that see it, so no two tasks, and no two steps, write the same place.
template <class Operator, class Args, class Map> class Backward {
  static constexpr int kRelation = Map::kRelation, kMerged = Map::kMerged, kKey = Map::kKey;

 public:
  Backward(const Operator &op, const Args &args, const Map &map, float *memory)
      : op_(op), args_(args), map_(map), merged_(map, memory),
        sources_(map, memory + MergedRows<Map>::size(map), Operator::kPlanes) {}

  static size_t size(const Map &map) {
    return MergedRows<Map>::size(map) + Ring<Map>::size(map, Operator::kPlanes);
  }

  void run(int64_t image, int64_t first, int64_t end) {
    image_ = image;
    const int64_t pixels = map_.height * map_.width;
    merged_.start(static_cast<const float *>(args_.qkv) + image * pixels * kMerged);
    int64_t next = std::max<int64_t>(first - 1, 0);
    for (int64_t y = first; y < end; y++) {
      for (; next <= std::min(y + 1, map_.height - 1); next++) trace_row(next);
      gather_row(y);
    }
  }

 private:
  void trace_row(int64_t y) {
    float *source = sources_.row(y);
    read_gradient(args_, map_, (image_ * map_.height + y) * map_.width, source);
    merged_.around(y, rows_);
    for (int64_t x = 0; x < map_.width; x += kLanes) op_.trace(rows_, y, x, source);
    for (int p = 0; p < Operator::kPlanes; p++) {
      float *plane = source + p * map_.plane();
      plane[-1] = plane[map_.width] = 0.0f;
    }
  }

  void gather_row(int64_t y) {
    const int64_t pixel = (image_ * map_.height + y) * map_.width;
    const float *keys = rows_[y + 1 < map_.height ? 0 : 1];
    for (int64_t x = 0; x < map_.width; x += kLanes) {
      Pixels grad[kMerged]{}, key[kRelation];
      SAN_UNROLL for (int k = 0; k < kRelation; k++)
        key[k] = at_plane(keys + x, kKey + k, map_.plane());
      const float *own = sources_.row(y) + x;
      SAN_UNROLL for (int k = 0; k < kRelation; k++)
        grad[k] = at_plane(own, kGradQuery + k, map_.plane());
      gather_rows(y, x, key, grad);
      write(pixel + x, map_.count(x), grad);
    }
  }

  // From every row with neighbours in row y, be it by reflection.
  SAN_INLINE void gather_rows(int64_t y, int64_t x, const Pixels (&key)[kRelation],
                              Pixels (&grad)[kMerged]) const {
    for (int64_t from = std::max<int64_t>(y - 1, 0); from <= std::min(y + 1, map_.height - 1);
         from++)
      for (int i = 0; i < kSide; i++) {
        const int64_t to = from + i - 1;
        if (to == y || (map_.reflected && reflect(to, map_.height) == y))
          gather_line(i * kSide, sources_.row(from), x, key, grad);
      }
  }

  // From one row by its neighbours `first`, `first` + 1 and `first` + 2. Reflection at either end
  // of the row leads from the last pixel to the last but one.
  SAN_INLINE void gather_line(int first, const float *source, int64_t x,
                              const Pixels (&key)[kRelation], Pixels (&grad)[kMerged]) const {
    const auto all = [](Pixels v) { return v; };
    const auto second = [](Pixels v) { return keep_bits<kLanes>(v, 2); };
    SAN_UNROLL for (int j = 0; j < kSide; j++)
      op_.gather(first + j, source + x + 1 - j, key, all, grad);
    if (!map_.reflected) return;
    const int64_t lane = map_.width - 2 - x;
    if (x == 0) op_.gather(first, source + x - 1, key, second, grad);
    if (lane >= 0 && lane < kLanes)
      op_.gather(first + kSide - 1, source + x + 1, key,
                 [lane](Pixels v) { return keep_bits<kLanes>(v, 1u << lane); }, grad);
  }

  SAN_INLINE void write(int64_t pixel, int count, const Pixels (&grad)[kMerged]) const {
    auto *out = static_cast<float *>(args_.grad_qkv) + pixel * kMerged;
    for (int c = 0; c < kMerged; c += kBlock) {
      Pixels rows[kBlock];
      SAN_UNROLL for (int q = 0; q < kBlock; q++) rows[q] = grad[c + q];
      turn(rows);
      write_block(out + c, kMerged, count, rows);
    }
  }

  const Operator &op_;
  const Args &args_;
  const Map &map_;
  MergedRows<Map> merged_;
  Ring<Map> sources_;
  int64_t image_ = 0;
  const float *rows_[kSide] = {};
};

template <class Operator, class Map, class Args> int backward(const Args &args, const Map &map) {
  using Task = Backward<Operator, Args, Map>;
  const Operator op(args, map);
  const int64_t bands = planar_bands(map);
  share_tasks(args.images * bands, args.threads, Task::size(map),
              [&](int64_t task, float *memory) {
    const int64_t first = task % bands * kBandRows;
    Task(op, args, map, memory)
        .run(task / bands, first, std::min(map.height, first + kBandRows));
  });
  return kOk;
}

template <class T> struct Type {
  using Is = T;
};

template <class Args> bool takes(const Args &args, int relation, int hidden) {
  return args.relation == relation && args.hidden == hidden && args.groups == kGroups &&
         args.channels == kValues && args.footprint == kSide && args.element == kFloat;
}

// Calls pass(operator's type, map) with the plane's size known to the compiler where it is common.
template <class Pass> int with_operator(const PatchwiseArgs &args, const Pass &pass) {
  const auto run = [&](auto map) { return pass(Type<Patchwise<decltype(map)>>{}, map); };
  return args.width <= kCommonWidth ? run(PlanarMap<kCommonPlane>(args))
                                    : run(PlanarMap<0>(args));
}

template <class Pass> int with_operator(const PairwiseArgs &args, const Pass &pass) {
  const auto run = [&](auto map, auto any) {
    return pass(Type<Pairwise<decltype(map), decltype(any)::value>>{}, map);
  };
  if (args.relation != kHidden) return run(PlanarMap<0, kValues>(args), std::true_type{});
  if (args.delta != kSubtraction || args.mapping != kLRL || args.table_by_place)
    return run(PlanarMap<0>(args), std::true_type{});
  return args.width <= kCommonWidth ? run(PlanarMap<kCommonPlane>(args), std::false_type{})
                                    : run(PlanarMap<0>(args), std::false_type{});
}

template <class Args> int run_forward(const Args &args) {
  return with_operator(args, [&](auto type, const auto &map) {
    return forward<typename decltype(type)::Is>(args, map);
  });
}

template <class Args> int run_backward(const Args &args) {
  return with_operator(args, [&](auto type, const auto &map) {
    return backward<typename decltype(type)::Is>(args, map);
  });
}

}  // namespace
}  // namespace planar

using namespace planar;

bool planar_takes(const PairwiseArgs &args) {
  const int hidden = args.mapping == kL ? kGroups : kHidden;
  return takes(args, kHidden, hidden) || takes(args, kValues, hidden);
}
bool planar_takes(const PatchwiseArgs &args) { return takes(args, kHidden, kPatchwiseHidden); }
int planar_forward(const PairwiseArgs &args) { return run_forward(args); }
int planar_forward(const PatchwiseArgs &args) { return run_forward(args); }
int planar_backward(const PairwiseArgs &args) { return run_backward(args); }
int planar_backward(const PatchwiseArgs &args) { return run_backward(args); }

}  // namespace san
