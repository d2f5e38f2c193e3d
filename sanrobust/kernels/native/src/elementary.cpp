// Aggregation and subtraction on padded copies of single planes. A task owns the planes that it
// writes, so every sum has one order; sums over neighbours run row by row.
#include "elementary.h"

#include <vector>

#include "workspaces.h"

namespace san {
namespace {

constexpr int kBlock = 16;      // positions of a row that are summed in registers
constexpr int kChannels = 8;    // channels of a group, and output rows, that a task takes
constexpr int kRows = 8;

// The geometry of a call: a map of sides height and width inside its margin.
struct Frame {
  explicit Frame(const ElementaryArgs &args)
      : height(args.height), width(args.width), stride(args.stride), dilation(args.dilation),
        footprint(args.footprint), neighbours(args.footprint * args.footprint),
        threads(std::max(args.threads, 1)), margin(dilation * (footprint - 1) / 2),
        pitch(width + 2 * margin), rows(height + 2 * margin),
        out_height((height - 1) / stride + 1), out_width((width - 1) / stride + 1),
        positions(out_height * out_width),
        row_source(sources(-margin, rows, height, args.padding == kZeros)),
        column_source(sources(-margin, pitch, width, args.padding == kZeros)) {
    for (int64_t n = 0; n < neighbours; n++)
      offset.push_back(n / footprint * dilation * pitch + n % footprint * dilation);
  }

  int64_t pixels() const { return height * width; }
  int64_t padded() const { return rows * pitch; }
  // Rows of a padded plane that `count` output rows read.
  int64_t rows_read(int64_t count) const {
    return (count - 1) * stride + (footprint - 1) * dilation + 1;
  }

  int64_t height, width, stride, dilation, footprint, neighbours;
  int threads;
  int64_t margin, pitch, rows, out_height, out_width, positions;
  std::vector<int64_t> row_source, column_source, offset;
};

// Copies rows [first, first + count) of the padded plane.
template <class T>
void pad(const Frame &frame, const T *plane, int64_t first, int64_t count, T *to) {
  for (int64_t r = 0; r < count; r++, to += frame.pitch) {
    const int64_t y = frame.row_source[first + r];
    const T *from = plane + y * frame.width;
    for (int64_t x = 0; x < frame.pitch; x++) {
      const int64_t column = frame.column_source[x];
      to[x] = y < 0 || column < 0 ? T(0) : from[column];
    }
  }
}

// Adds a padded plane to its map: undoes pad.
template <class T> void unpad(const Frame &frame, const T *padded, T *plane) {
  std::fill(plane, plane + frame.pixels(), T(0));
  for (int64_t r = 0; r < frame.rows; r++, padded += frame.pitch) {
    if (frame.row_source[r] < 0) continue;
    T *to = plane + frame.row_source[r] * frame.width;
    for (int64_t x = 0; x < frame.pitch; x++)
      if (frame.column_source[x] >= 0) to[frame.column_source[x]] += padded[x];
  }
}

// Calls body(x, count, full) for the blocks of an output row; `full` is a constant, so that the
// compiler keeps a full block in registers.
template <class Body> void for_blocks(int64_t width, const Body &body) {
  int64_t x = 0;
  for (; x + kBlock <= width; x += kBlock) body(x, std::integral_constant<int, kBlock>());
  if (x < width) body(x, static_cast<int>(width - x));
}

// One output row: sum over the neighbours of weight times value.
template <class T, class Stride>
void aggregate_row(const Frame &frame, Stride stride, const T *weight, const T *value, T *out) {
  for_blocks(frame.out_width, [&](int64_t x, auto count) {
    T sum[kBlock] = {};
    for (int64_t n = 0; n < frame.neighbours; n++) {
      const T *w = weight + n * frame.positions + x;
      const T *v = value + frame.offset[n] + x * stride;
      for (int i = 0; i < count; i++) sum[i] += w[i] * v[i * stride];
    }
    for (int i = 0; i < count; i++) out[x + i] = sum[i];
  });
}

// One output row of one neighbour: sum over channels of gradient times value.
template <class T, class Stride>
void weight_row(const Frame &frame, Stride stride, int channels, const T *grad,
                int64_t grad_step, const T *value, int64_t value_step, T *out) {
  for_blocks(frame.out_width, [&](int64_t x, auto count) {
    T sum[kBlock] = {};
    for (int c = 0; c < channels; c++) {
      const T *g = grad + c * grad_step + x;
      const T *v = value + c * value_step + x * stride;
      for (int i = 0; i < count; i++) sum[i] += g[i] * v[i * stride];
    }
    for (int i = 0; i < count; i++) out[x + i] = sum[i];
  });
}

// Adds one output row of one neighbour to the padded gradient.
template <class T, class Stride>
void scatter_row(const Frame &frame, Stride stride, const T *weight, const T *grad,
                 T *__restrict padded) {
  for (int64_t x = 0; x < frame.out_width; x++) padded[x * stride] += weight[x] * grad[x];
}

// Calls body(stride), with stride 1 as a constant.
template <class Body> void with_stride(const Frame &frame, const Body &body) {
  if (frame.stride == 1) body(std::integral_constant<int, 1>());
  else body(frame.stride);
}

template <class T> class Aggregation {
 public:
  explicit Aggregation(const ElementaryArgs &args)
      : frame_(args), images_(args.images), channels_(args.channels), groups_(args.groups),
        shared_(args.channels / args.groups), value_(static_cast<const T *>(args.first)),
        weight_(static_cast<const T *>(args.second)), grad_(static_cast<const T *>(args.grad)),
        out_(static_cast<T *>(args.out)), grad_value_(static_cast<T *>(args.grad_first)),
        grad_weight_(static_cast<T *>(args.grad_second)) {}

  void forward() const {
    for_channels([&](int64_t plane, const T *weight, T *padded) {
      pad(frame_, value_ + plane * frame_.pixels(), 0, frame_.rows, padded);
      T *out = out_ + plane * frame_.positions;
      with_stride(frame_, [&](auto stride) {
        for (int64_t y = 0; y < frame_.out_height; y++)
          aggregate_row(frame_, stride, weight + y * frame_.out_width,
                        padded + y * frame_.stride * frame_.pitch, out + y * frame_.out_width);
      });
    });
  }

  void backward() const {
    if (grad_value_) backward_value();
    if (grad_weight_) backward_weight();
  }

 private:
  // Calls body(plane, weight of its group, scratch for a padded plane) for every channel.
  template <class Body> void for_channels(const Body &body) const {
    const int64_t blocks = (shared_ + kChannels - 1) / kChannels;
    const int64_t tasks = images_ * groups_ * blocks;
    Workspaces<T> spaces(std::min<int64_t>(tasks, frame_.threads), frame_.padded());
    parallel_for(tasks, frame_.threads, [&](int64_t task) {
      const int64_t image = task / blocks / groups_, group = task / blocks % groups_;
      const int64_t first = task % blocks * kChannels, space = spaces.take();
      for (int64_t s = first; s < std::min<int64_t>(first + kChannels, shared_); s++)
        body(image * channels_ + group + s * groups_, weight_of(image, group), spaces.at(space));
      spaces.give_back(space);
    });
  }

  void backward_value() const {
    for_channels([&](int64_t plane, const T *weight, T *padded) {
      std::fill(padded, padded + frame_.padded(), T(0));
      const T *grad = grad_ + plane * frame_.positions;
      with_stride(frame_, [&](auto stride) {
        for (int64_t y = 0; y < frame_.out_height; y++)
          for (int64_t n = 0; n < frame_.neighbours; n++)
            scatter_row(frame_, stride, weight + n * frame_.positions + y * frame_.out_width,
                        grad + y * frame_.out_width,
                        padded + y * frame_.stride * frame_.pitch + frame_.offset[n]);
      });
      unpad(frame_, padded, grad_value_ + plane * frame_.pixels());
    });
  }

  void backward_weight() const {
    const int64_t chunks = (frame_.out_height + kRows - 1) / kRows;
    const int64_t tasks = images_ * groups_ * chunks;
    const int64_t each = frame_.rows_read(std::min<int64_t>(kRows, frame_.out_height))
                         * frame_.pitch;
    Workspaces<T> spaces(std::min<int64_t>(tasks, frame_.threads), shared_ * each);
    parallel_for(tasks, frame_.threads, [&](int64_t task) {
      const int64_t image = task / chunks / groups_, group = task / chunks % groups_;
      const int64_t space = spaces.take();
      weight_rows(image, group, task % chunks * kRows, spaces.at(space), each);
      spaces.give_back(space);
    });
  }

  void weight_rows(int64_t image, int64_t group, int64_t first, T *padded, int64_t each) const {
    const int64_t rows = std::min<int64_t>(kRows, frame_.out_height - first);
    const int64_t plane = image * channels_ + group;
    for (int s = 0; s < shared_; s++)
      pad(frame_, value_ + (plane + s * groups_) * frame_.pixels(), first * frame_.stride,
          frame_.rows_read(rows), padded + s * each);
    T *to = grad_weight_ + (weight_of(image, group) - weight_);
    with_stride(frame_, [&](auto stride) {
      for (int64_t y = 0; y < rows; y++)
        for (int64_t n = 0; n < frame_.neighbours; n++) {
          const int64_t at = (first + y) * frame_.out_width;
          weight_row(frame_, stride, shared_, grad_ + plane * frame_.positions + at,
                     groups_ * frame_.positions,
                     padded + y * frame_.stride * frame_.pitch + frame_.offset[n], each,
                     to + n * frame_.positions + at);
        }
    });
  }

  const T *weight_of(int64_t image, int64_t group) const {
    return weight_ + (image * groups_ + group) * frame_.neighbours * frame_.positions;
  }

  Frame frame_;
  int64_t images_;
  int channels_, groups_, shared_;
  const T *value_, *weight_, *grad_;
  T *out_, *grad_value_, *grad_weight_;
};

template <class T> class Subtraction {
 public:
  explicit Subtraction(const ElementaryArgs &args)
      : frame_(args), planes_(args.images * args.channels),
        query_(static_cast<const T *>(args.first)), key_(static_cast<const T *>(args.second)),
        grad_(static_cast<const T *>(args.grad)), out_(static_cast<T *>(args.out)),
        grad_query_(static_cast<T *>(args.grad_first)),
        grad_key_(static_cast<T *>(args.grad_second)) {}

  void forward() const {
    for_planes([&](int64_t plane, T *padded) {
      pad(frame_, key_ + plane * frame_.pixels(), 0, frame_.rows, padded);
      const T *query = query_ + plane * frame_.pixels();
      T *out = out_ + plane * frame_.neighbours * frame_.positions;
      for_rows([&](int64_t n, int64_t y, auto stride) {
        const T *centre = query + y * frame_.stride * frame_.width;
        const T *key = padded + y * frame_.stride * frame_.pitch + frame_.offset[n];
        T *to = out + n * frame_.positions + y * frame_.out_width;
        for (int64_t x = 0; x < frame_.out_width; x++)
          to[x] = centre[x * stride] - key[x * stride];
      });
    });
  }

  void backward() const {
    for_planes([&](int64_t plane, T *padded) {
      const T *grad = grad_ + plane * frame_.neighbours * frame_.positions;
      if (grad_query_) backward_query(grad, grad_query_ + plane * frame_.pixels());
      if (grad_key_) backward_key(grad, padded, grad_key_ + plane * frame_.pixels());
    });
  }

 private:
  template <class Body> void for_planes(const Body &body) const {
    Workspaces<T> spaces(std::min<int64_t>(planes_, frame_.threads), frame_.padded());
    parallel_for(planes_, frame_.threads, [&](int64_t plane) {
      const int64_t space = spaces.take();
      body(plane, spaces.at(space));
      spaces.give_back(space);
    });
  }

  template <class Body> void for_rows(const Body &body) const {
    with_stride(frame_, [&](auto stride) {
      for (int64_t n = 0; n < frame_.neighbours; n++)
        for (int64_t y = 0; y < frame_.out_height; y++) body(n, y, stride);
    });
  }

  void backward_query(const T *grad, T *__restrict to) const {
    std::fill(to, to + frame_.pixels(), T(0));
    for_rows([&](int64_t n, int64_t y, auto stride) {
      const T *from = grad + n * frame_.positions + y * frame_.out_width;
      T *row = to + y * frame_.stride * frame_.width;
      for (int64_t x = 0; x < frame_.out_width; x++) row[x * stride] += from[x];
    });
  }

  void backward_key(const T *grad, T *padded, T *to) const {
    std::fill(padded, padded + frame_.padded(), T(0));
    for_rows([&](int64_t n, int64_t y, auto stride) {
      const T *from = grad + n * frame_.positions + y * frame_.out_width;
      T *row = padded + y * frame_.stride * frame_.pitch + frame_.offset[n];
      for (int64_t x = 0; x < frame_.out_width; x++) row[x * stride] -= from[x];
    });
    unpad(frame_, padded, to);
  }

  Frame frame_;
  int64_t planes_;
  const T *query_, *key_, *grad_;
  T *out_, *grad_query_, *grad_key_;
};

template <template <class> class Operator> int forward(const ElementaryArgs &args) {
  if (args.element == kDouble) Operator<double>(args).forward();
  else Operator<float>(args).forward();
  return kOk;
}

template <template <class> class Operator> int backward(const ElementaryArgs &args) {
  if (args.element == kDouble) Operator<double>(args).backward();
  else Operator<float>(args).backward();
  return kOk;
}

}  // namespace

int aggregation_forward(const ElementaryArgs &args) { return forward<Aggregation>(args); }
int aggregation_backward(const ElementaryArgs &args) { return backward<Aggregation>(args); }
int subtraction_forward(const ElementaryArgs &args) { return forward<Subtraction>(args); }
int subtraction_backward(const ElementaryArgs &args) { return backward<Subtraction>(args); }

}  // namespace san
