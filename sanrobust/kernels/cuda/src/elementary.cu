// Aggregation and subtraction with stride and dilation, any strides of the maps, one thread for
// each value that is written. Gradients are gathered, so every sum has one fixed order. A known
// footprint K lets sums be unrolled; the padding mode is a branch that all threads take together.
#include "common.cuh"

namespace san {

// Where a thread's value lies in maps of `height` x `width`.
struct Cell {
  int64 image;
  int channel, y, x;
};

SAN_INLINE Cell cell_of(const ElementaryArgs &args, int64 index, int64 height, int64 width) {
  Cell cell;
  if (args.channels_fastest) {
    cell.channel = static_cast<int>(index % args.channels);
    index /= args.channels;
  }
  cell.x = static_cast<int>(index % width);
  index /= width;
  cell.y = static_cast<int>(index % height);
  index /= height;
  if (!args.channels_fastest) {
    cell.channel = static_cast<int>(index % args.channels);
    index /= args.channels;
  }
  cell.image = index;
  return cell;
}

// The row and the column of a neighbour, `step` rows or columns of the footprint from the centre.
SAN_INLINE int neighbour_y(const ElementaryArgs &args, int centre, int step) {
  return neighbour(args.padding, centre + step * args.dilation, static_cast<int>(args.height));
}
SAN_INLINE int neighbour_x(const ElementaryArgs &args, int centre, int step) {
  return neighbour(args.padding, centre + step * args.dilation, static_cast<int>(args.width));
}

// The output row and column that have this pixel as that neighbour.
SAN_INLINE int origin_y(const ElementaryArgs &args, int y, int step, bool mirrored) {
  return origin(y, step * args.dilation, static_cast<int>(args.height), args.stride,
                static_cast<int>(args.out_height), mirrored);
}
SAN_INLINE int origin_x(const ElementaryArgs &args, int x, int step, bool mirrored) {
  return origin(x, step * args.dilation, static_cast<int>(args.width), args.stride,
                static_cast<int>(args.out_width), mirrored);
}

template <class W> SAN_INLINE W *weight_at(const Weights &weights, int64 image, int group,
                                           int slot, int64 position) {
  return static_cast<W *>(weights.data) + image * weights.image + group * weights.group
      + slot * weights.neighbour + position * weights.position;
}

template <class T, class W, int K>
__global__ void __launch_bounds__(256) aggregate(const ElementaryArgs args) {
  typedef Acc<T> A;
  const int64 index = global_index();
  if (index >= args.images * args.channels * args.out_height * args.out_width) return;
  const Cell cell = cell_of(args, index, args.out_height, args.out_width);
  const int group = cell.channel % args.groups;
  const int64 position = cell.y * args.out_width + cell.x;
  A sum = 0;
#pragma unroll 1
  for (int row = 0; row < K; row++) {
    const int y = neighbour_y(args, cell.y * args.stride, row - K / 2);
    if (y < 0) continue;
#pragma unroll
    for (int column = 0; column < K; column++) {
      const int x = neighbour_x(args, cell.x * args.stride, column - K / 2);
      if (x < 0) continue;
      const W weight = *weight_at<W>(args.weights, cell.image, group, row * K + column, position);
      sum += A(widen(weight)) * widen(*at<T>(args.first, cell.image, y, x, cell.channel));
    }
  }
  if (args.scale)
    sum = relu(sum * static_cast<const A *>(args.scale)[cell.channel]
               + static_cast<const A *>(args.shift)[cell.channel]);
  *at<T>(args.out, cell.image, cell.y, cell.x, cell.channel) = narrow<T>(sum);
}

template <class T, class W, int K>
__global__ void __launch_bounds__(256) aggregate_value_grad(const ElementaryArgs args) {
  typedef Acc<T> A;
  const int64 index = global_index();
  if (index >= args.images * args.channels * args.height * args.width) return;
  const Cell cell = cell_of(args, index, args.height, args.width);
  const int group = cell.channel % args.groups;
  A sum = 0;
  for (int slot = 0; slot < K * K; slot++)
    for (int ways = 0; ways < (args.padding == kReflect ? 4 : 1); ways++) {
      const int y = origin_y(args, cell.y, slot / K - K / 2, ways & 1);
      const int x = origin_x(args, cell.x, slot % K - K / 2, ways & 2);
      if (y < 0 || x < 0) continue;
      const W weight = *weight_at<W>(args.weights, cell.image, group, slot,
                                     y * args.out_width + x);
      sum += A(widen(weight)) * widen(*at<T>(args.grad, cell.image, y, x, cell.channel));
    }
  *at<T>(args.out, cell.image, cell.y, cell.x, cell.channel) = narrow<T>(sum);
}

template <class T, class W, int K>
__global__ void __launch_bounds__(256) aggregate_weight_grad(const ElementaryArgs args) {
  typedef Acc<T> A;
  int64 index = global_index();
  const int64 positions = args.out_height * args.out_width;
  if (index >= args.images * args.groups * K * K * positions) return;
  // Neighbouring threads take neighbouring groups where those lie together.
  int group = 0;
  if (args.weights.group == 1) {
    group = static_cast<int>(index % args.groups);
    index /= args.groups;
  }
  const int64 position = index % positions;
  index /= positions;
  const int slot = static_cast<int>(index % (K * K));
  index /= K * K;
  if (args.weights.group != 1) {
    group = static_cast<int>(index % args.groups);
    index /= args.groups;
  }
  const int out_y = static_cast<int>(position / args.out_width);
  const int out_x = static_cast<int>(position % args.out_width);
  const int y = neighbour_y(args, out_y * args.stride, slot / K - K / 2);
  const int x = neighbour_x(args, out_x * args.stride, slot % K - K / 2);
  A sum = 0;
  if (y >= 0 && x >= 0)
    for (int channel = group; channel < args.channels; channel += args.groups)
      sum += A(widen(*at<T>(args.grad, index, out_y, out_x, channel)))
          * widen(*at<T>(args.first, index, y, x, channel));
  *weight_at<W>(args.weights, index, group, slot, position) = narrow<W>(sum);
}

template <class T>
__global__ void __launch_bounds__(256) subtract(const ElementaryArgs args) {
  typedef Acc<T> A;
  const int footprint = args.footprint, squares = footprint * footprint;
  int64 index = global_index();
  const int64 positions = args.out_height * args.out_width;
  if (index >= args.images * args.channels * squares * positions) return;
  const int64 position = index % positions;
  index /= positions;
  const int slot = static_cast<int>(index % squares);
  index /= squares;
  const int channel = static_cast<int>(index % args.channels);
  index /= args.channels;
  const int centre_y = static_cast<int>(position / args.out_width) * args.stride;
  const int centre_x = static_cast<int>(position % args.out_width) * args.stride;
  const int y = neighbour_y(args, centre_y, slot / footprint - footprint / 2);
  const int x = neighbour_x(args, centre_x, slot % footprint - footprint / 2);
  A relation = widen(*at<T>(args.first, index, centre_y, centre_x, channel));
  if (y >= 0 && x >= 0) relation -= widen(*at<T>(args.second, index, y, x, channel));
  *weight_at<T>(args.weights, index, channel, slot, position) = narrow<T>(relation);
}

template <class T>
__global__ void __launch_bounds__(256) subtract_query_grad(const ElementaryArgs args) {
  const int squares = args.footprint * args.footprint;
  const int64 index = global_index();
  if (index >= args.images * args.channels * args.height * args.width) return;
  const Cell cell = cell_of(args, index, args.height, args.width);
  Acc<T> sum = 0;
  if (cell.y % args.stride == 0 && cell.x % args.stride == 0)
    for (int slot = 0; slot < squares; slot++)
      sum += widen(*weight_at<T>(args.weights, cell.image, cell.channel, slot,
                                 cell.y / args.stride * args.out_width + cell.x / args.stride));
  *at<T>(args.out, cell.image, cell.y, cell.x, cell.channel) = narrow<T>(sum);
}

template <class T>
__global__ void __launch_bounds__(256) subtract_key_grad(const ElementaryArgs args) {
  const int footprint = args.footprint, squares = footprint * footprint;
  const int64 index = global_index();
  if (index >= args.images * args.channels * args.height * args.width) return;
  const Cell cell = cell_of(args, index, args.height, args.width);
  Acc<T> sum = 0;
  for (int slot = 0; slot < squares; slot++)
    for (int ways = 0; ways < (args.padding == kReflect ? 4 : 1); ways++) {
      const int y = origin_y(args, cell.y, slot / footprint - footprint / 2, ways & 1);
      const int x = origin_x(args, cell.x, slot % footprint - footprint / 2, ways & 2);
      if (y >= 0 && x >= 0)
        sum -= widen(*weight_at<T>(args.weights, cell.image, cell.channel, slot,
                                   y * args.out_width + x));
    }
  *at<T>(args.out, cell.image, cell.y, cell.x, cell.channel) = narrow<T>(sum);
}

}  // namespace san
