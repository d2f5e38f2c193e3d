// Fused attention of any shape: each kernel gives a thread one value, or one row of scratch that
// no other thread touches, so there is nothing to synchronise. Aggregation and its gradients are
// those of elementary.cu over the scratch. A footprint known to the compiler would gain nothing.
#include "common.cuh"

namespace san {

// The neighbour in a slot of a pixel: its place in the map and how often it counts.
struct Slot {
  int y, x, times;
};

// times is 0 where a slot is empty. The last slot stands for the neighbours outside.
SAN_INLINE Slot slot_of(const PairwiseArgs &args, int slot, int y, int x) {
  const int height = static_cast<int>(args.height), width = static_cast<int>(args.width);
  const int footprint = args.footprint, reach = footprint / 2;
  if (slot == footprint * footprint) {
    const int rows = min(y + reach, height - 1) - max(y - reach, 0) + 1;
    const int columns = min(x + reach, width - 1) - max(x - reach, 0) + 1;
    return {-1, -1, footprint * footprint - rows * columns};
  }
  Slot place = {y + slot / footprint - reach, x + slot % footprint - reach, 0};
  if (place.y < 0 || place.y >= height || place.x < 0 || place.x >= width) return place;
  place.times = args.padding == kZeros ? 1 : multiplicity(y, place.y, height, reach)
      * multiplicity(x, place.x, width, reach);
  return place;
}

// A neighbour outside has key 0.
template <class T> SAN_INLINE Acc<T> query_at(const PairwiseArgs &args, const Pixel &pixel, int r) {
  return widen(*at<T>(args.query, pixel.image, pixel.y, pixel.x, r));
}
template <class T> SAN_INLINE Acc<T> key_at(const PairwiseArgs &args, const Pixel &pixel,
                                            const Slot &slot, int r) {
  return slot.y < 0 ? Acc<T>(0) : Acc<T>(widen(*at<T>(args.key, pixel.image, slot.y, slot.x, r)));
}

// t of one relation channel, of which a dot product has one.
template <class T, int DELTA>
SAN_INLINE Acc<T> relation_at(const PairwiseArgs &args, const Pixel &pixel, const Slot &slot,
                              int r) {
  if constexpr (DELTA == kSubtraction) {
    return relu(query_at<T>(args, pixel, r) - key_at<T>(args, pixel, slot, r));
  } else {
    Acc<T> sum = static_cast<const Acc<T> *>(args.offset)[r];
    for (int c = r; c < (DELTA == kDot ? args.relation : r + 1); c++)
      sum += query_at<T>(args, pixel, c) * key_at<T>(args, pixel, slot, c);
    return relu(sum);
  }
}

template <class T, int DELTA>
SAN_INLINE Acc<T> hidden_at(const PairwiseArgs &args, const Pixel &pixel, const Slot &slot,
                            int number, int unit) {
  typedef Acc<T> A;
  const int64 neighbour = slot.y < 0 ? -1 : static_cast<int64>(slot.y) * args.width + slot.x;
  const int64 row = table_row(args, static_cast<int64>(pixel.y) * args.width + pixel.x, neighbour,
                              number);
  A sum = static_cast<const A *>(args.table)[row * args.hidden + unit];
  if constexpr (DELTA == kConcatenation) {
    return sum + (query_at<T>(args, pixel, unit) - key_at<T>(args, pixel, slot, unit));
  } else {
    const int width = DELTA == kDot ? 1 : args.relation;
    const A *weight = static_cast<const A *>(args.w1) + static_cast<int64>(unit) * width;
#pragma unroll 2  // by four, registers spill
    for (int r = 0; r < width; r++)
      sum += weight[r] * relation_at<T, DELTA>(args, pixel, slot, r);
    return sum;
  }
}

// What a thread computes: one of the values of a pixel, `index` among those of all pixels.
struct Task {
  int64 index;
  int item;
  Pixel pixel;
};

// Finds this thread's task where each pixel has `each` values; false beyond the last.
template <class Args> SAN_INLINE bool find_task(const Args &args, int each, Task &task) {
  task.index = global_index();
  if (task.index >= args.images * args.height * args.width * each) return false;
  task.item = static_cast<int>(task.index % each);
  task.pixel = pixel_of(task.index / each, args.height, args.width);
  return true;
}

// The logits of one slot of a pixel, in its row of alpha.
template <class T, int DELTA>
__global__ void __launch_bounds__(256) pairwise_logits(const PairwiseArgs args) {
  typedef Acc<T> A;
  Task task;
  if (!find_task(args, args.slots, task)) return;
  const Slot slot = slot_of(args, task.item, task.pixel.y, task.pixel.x);
  if (slot.times == 0) return;
  A *logits = static_cast<A *>(args.alpha) + task.index * args.groups;
  for (int g = 0; g < args.groups; g++) logits[g] = 0;
  for (int unit = 0; unit < args.hidden; unit++) {
    const A h = relu(hidden_at<T, DELTA>(args, task.pixel, slot, task.item, unit));
    const A *weight = static_cast<const A *>(args.w2t) + static_cast<int64>(unit) * args.groups;
    for (int g = 0; g < args.groups; g++) logits[g] += weight[g] * h;
  }
}

// The softmax over the slots of one pixel and group, in place; multiplicities are factors.
template <class T>
__global__ void __launch_bounds__(256) pairwise_softmax(const PairwiseArgs args) {
  typedef Acc<T> A;
  const int squares = args.footprint * args.footprint;
  Task task;
  if (!find_task(args, args.groups, task)) return;
  const Pixel pixel = task.pixel;
  A *alpha = static_cast<A *>(args.alpha) + pixel.rank * args.slots * args.groups + task.item;
  A highest = alpha[squares / 2 * args.groups], total = 0;
  for (int s = 0; s < args.slots; s++)
    if (slot_of(args, s, pixel.y, pixel.x).times)
      highest = larger(highest, alpha[s * args.groups]);
  for (int s = 0; s < args.slots; s++) {
    const int times = slot_of(args, s, pixel.y, pixel.x).times;
    if (times == 0) continue;
    alpha[s * args.groups] = A(times) * exp(alpha[s * args.groups] - highest);
    total += alpha[s * args.groups];
  }
  for (int s = 0; s < args.slots; s++)
    if (slot_of(args, s, pixel.y, pixel.x).times)
      alpha[s * args.groups] /= total;
}

// In place of the gradient of alpha: that of the logits. Outside, values are 0.
template <class T>
__global__ void __launch_bounds__(256) pairwise_logit_grad(const PairwiseArgs args) {
  typedef Acc<T> A;
  const int squares = args.footprint * args.footprint;
  Task task;
  if (!find_task(args, args.groups, task)) return;
  const Pixel pixel = task.pixel;
  const int64 first = pixel.rank * args.slots * args.groups + task.item;
  const A *alpha = static_cast<const A *>(args.alpha) + first;
  A *grad = static_cast<A *>(args.logit_grad) + first;
  A dot = 0;
  for (int s = 0; s < squares; s++)
    if (slot_of(args, s, pixel.y, pixel.x).times)
      dot += alpha[s * args.groups] * grad[s * args.groups];
  for (int s = 0; s < args.slots; s++)
    if (slot_of(args, s, pixel.y, pixel.x).times)
      grad[s * args.groups] = alpha[s * args.groups]
          * ((s < squares ? grad[s * args.groups] : A(0)) - dot);
}

// The gradient of one slot's hidden units, where they are positive.
template <class T, int DELTA>
__global__ void __launch_bounds__(256) pairwise_hidden_grad(const PairwiseArgs args) {
  typedef Acc<T> A;
  Task task;
  if (!find_task(args, args.slots, task)) return;
  const Slot slot = slot_of(args, task.item, task.pixel.y, task.pixel.x);
  if (slot.times == 0) return;
  const A *logit_grad = static_cast<const A *>(args.logit_grad) + task.index * args.groups;
  for (int unit = 0; unit < args.hidden; unit++) {
    const A *weight = static_cast<const A *>(args.w2t) + static_cast<int64>(unit) * args.groups;
    A sum = 0;
    for (int g = 0; g < args.groups; g++) sum += weight[g] * logit_grad[g];
    static_cast<A *>(args.hidden_grad)[task.index * args.hidden + unit] =
        hidden_at<T, DELTA>(args, task.pixel, slot, task.item, unit) > A(0) ? sum : A(0);
  }
}

// The gradient of one channel of the query, or KEY, by the pair in the slot `number` of `pixel`.
template <class T, int DELTA, bool KEY>
SAN_INLINE Acc<T> relation_grad(const PairwiseArgs &args, const Pixel &pixel, const Slot &slot,
                                int number, int r) {
  typedef Acc<T> A;
  const A *grad = static_cast<const A *>(args.hidden_grad)
      + (pixel.rank * args.slots + number) * args.hidden;
  if constexpr (DELTA == kConcatenation) {
    return KEY ? -grad[r] : grad[r];
  } else {
    const int channel = DELTA == kDot ? 0 : r;
    if (!(relation_at<T, DELTA>(args, pixel, slot, channel) > A(0))) return 0;
    const A *weight = static_cast<const A *>(args.w1t) + static_cast<int64>(channel) * args.hidden;
    A sum = 0;
    for (int unit = 0; unit < args.hidden; unit++) sum += weight[unit] * grad[unit];
    if constexpr (DELTA == kSubtraction) return KEY ? -sum : sum;
    return sum * (KEY ? query_at<T>(args, pixel, r) : key_at<T>(args, pixel, slot, r));
  }
}

template <class T, int DELTA>
__global__ void __launch_bounds__(256) pairwise_query_grad(const PairwiseArgs args) {
  Task task;
  if (!find_task(args, args.relation, task)) return;
  const Pixel pixel = task.pixel;
  const int r = task.item;
  Acc<T> sum = 0;
  for (int s = 0; s < args.slots; s++) {
    const Slot slot = slot_of(args, s, pixel.y, pixel.x);
    if (slot.times) sum += relation_grad<T, DELTA, false>(args, pixel, slot, s, r);
  }
  *at<T>(args.grad_query, pixel.image, pixel.y, pixel.x, r) = narrow<T>(sum);
}

// A pixel's key is in the windows of the pixels in its own window, in the mirrored slots.
template <class T, int DELTA>
__global__ void __launch_bounds__(256) pairwise_key_grad(const PairwiseArgs args) {
  const int footprint = args.footprint, squares = footprint * footprint;
  Task task;
  if (!find_task(args, args.relation, task)) return;
  const Pixel pixel = task.pixel;
  const int r = task.item;
  Acc<T> sum = 0;
  for (int s = 0; s < squares; s++) {
    const int y = pixel.y + s / footprint - footprint / 2;
    const int x = pixel.x + s % footprint - footprint / 2;
    if (y < 0 || y >= args.height || x < 0 || x >= args.width) continue;
    const Pixel centre = {pixel.image,
                          pixel.rank + (y - pixel.y) * args.width + (x - pixel.x), y, x};
    sum += relation_grad<T, DELTA, true>(args, centre, {pixel.y, pixel.x, 1}, squares - 1 - s, r);
  }
  *at<T>(args.grad_key, pixel.image, pixel.y, pixel.x, r) = narrow<T>(sum);
}

// relu(key * scale + shift) before the ReLU, for one slot and relation channel.
template <class T>
SAN_INLINE Acc<T> scaled_key(const PatchwiseArgs &args, const Pixel &pixel, int slot, int r) {
  typedef Acc<T> A;
  const int footprint = args.footprint;
  const int y = neighbour(args.padding, pixel.y + slot / footprint - footprint / 2,
                          static_cast<int>(args.height));
  const int x = neighbour(args.padding, pixel.x + slot % footprint - footprint / 2,
                          static_cast<int>(args.width));
  const A key = y < 0 || x < 0 ? A(0) : A(widen(*at<T>(args.key, pixel.image, y, x, r)));
  const int64 place = static_cast<int64>(slot) * args.relation + r;
  return key * static_cast<const A *>(args.key_scale)[place]
      + static_cast<const A *>(args.key_shift)[place];
}

template <class T>
__global__ void __launch_bounds__(256) patchwise_hidden(const PatchwiseArgs args) {
  typedef Acc<T> A;
  const int squares = args.footprint * args.footprint;
  Task task;
  if (!find_task(args, args.hidden, task)) return;
  const Pixel pixel = task.pixel;
  const int unit = task.item;
  const A *weight = static_cast<const A *>(args.w1t) + unit;
  A sum = static_cast<const A *>(args.b1)[unit];
  for (int r = 0; r < args.relation; r++)
    sum += weight[static_cast<int64>(r) * args.hidden]
        * relu(A(widen(*at<T>(args.query, pixel.image, pixel.y, pixel.x, r))));
  for (int s = 0; s < squares; s++)
    for (int r = 0; r < args.relation; r++)
      sum += weight[(static_cast<int64>(1 + s) * args.relation + r) * args.hidden]
          * relu(scaled_key<T>(args, pixel, s, r));
  static_cast<A *>(args.h)[task.index] = relu(sum);
}

template <class T>
__global__ void __launch_bounds__(256) patchwise_weights(const PatchwiseArgs args) {
  typedef Acc<T> A;
  const int columns = args.footprint * args.footprint * args.groups;
  Task task;
  if (!find_task(args, columns, task)) return;
  const int column = task.item;
  const A *h = static_cast<const A *>(args.h) + task.pixel.rank * args.hidden;
  const A *weight = static_cast<const A *>(args.w2t) + column;
  A sum = static_cast<const A *>(args.b2)[column];
  for (int unit = 0; unit < args.hidden; unit++)
    sum += weight[static_cast<int64>(unit) * columns] * h[unit];
  static_cast<A *>(args.weight_grad)[task.index] = sum;
}

template <class T>
__global__ void __launch_bounds__(256) patchwise_hidden_grad(const PatchwiseArgs args) {
  typedef Acc<T> A;
  const int columns = args.footprint * args.footprint * args.groups;
  Task task;
  if (!find_task(args, args.hidden, task)) return;
  const A *grad = static_cast<const A *>(args.weight_grad) + task.pixel.rank * columns;
  const A *weight = static_cast<const A *>(args.w2) + task.item;
  A sum = 0;
  for (int column = 0; column < columns; column++)
    sum += weight[static_cast<int64>(column) * args.hidden] * grad[column];
  static_cast<A *>(args.hidden_grad)[task.index] =
      static_cast<const A *>(args.h)[task.index] > A(0) ? sum : A(0);
}

template <class T>
__global__ void __launch_bounds__(256) patchwise_query_grad(const PatchwiseArgs args) {
  typedef Acc<T> A;
  Task task;
  if (!find_task(args, args.relation, task)) return;
  const Pixel pixel = task.pixel;
  const int r = task.item;
  const A *grad = static_cast<const A *>(args.hidden_grad) + pixel.rank * args.hidden;
  const A *weight = static_cast<const A *>(args.w1t) + static_cast<int64>(r) * args.hidden;
  A sum = 0;
  if (A(widen(*at<T>(args.query, pixel.image, pixel.y, pixel.x, r))) > A(0))
    for (int unit = 0; unit < args.hidden; unit++) sum += weight[unit] * grad[unit];
  *at<T>(args.grad_query, pixel.image, pixel.y, pixel.x, r) = narrow<T>(sum);
}

template <class T>
__global__ void __launch_bounds__(256) patchwise_key_grad(const PatchwiseArgs args) {
  typedef Acc<T> A;
  const int footprint = args.footprint, squares = footprint * footprint;
  Task task;
  if (!find_task(args, args.relation, task)) return;
  const Pixel pixel = task.pixel;
  const int r = task.item;
  const int height = static_cast<int>(args.height), width = static_cast<int>(args.width);
  const A key = widen(*at<T>(args.key, pixel.image, pixel.y, pixel.x, r));
  A sum = 0;
  for (int s = 0; s < squares; s++) {
    const int64 place = static_cast<int64>(s) * args.relation + r;
    const A scale = static_cast<const A *>(args.key_scale)[place];
    if (!(key * scale + static_cast<const A *>(args.key_shift)[place] > A(0))) continue;
    const A *weight = static_cast<const A *>(args.w1t) + (args.relation + place) * args.hidden;
    for (int ways = 0; ways < (args.padding == kReflect ? 4 : 1); ways++) {
      const int y = origin(pixel.y, s / footprint - footprint / 2, height, 1, height, ways & 1);
      const int x = origin(pixel.x, s % footprint - footprint / 2, width, 1, width, ways & 2);
      if (y < 0 || x < 0) continue;
      const A *grad = static_cast<const A *>(args.hidden_grad)
          + ((pixel.image * height + y) * width + x) * args.hidden;
      A part = 0;
      for (int unit = 0; unit < args.hidden; unit++) part += weight[unit] * grad[unit];
      sum += scale * part;
    }
  }
  *at<T>(args.grad_key, pixel.image, pixel.y, pixel.x, r) = narrow<T>(sum);
}

}  // namespace san
