// Batch normalisation by the statistics of the batch, and the ReLU behind it, of planar maps.
//
// A channel is a task: its sums run in one order, in blocks that stay in the nearest cache, and
// from block to block in double.
#include <cmath>

#include "lanewise.h"
#include "squares.h"

namespace san {
namespace {

using namespace lanewise;
constexpr int64_t kBlock = 2048;

// A run of values, by vectors and then one by one: body(place, vector or value to be filled).
template <class T, class Body> SAN_INLINE void each(int64_t count, const Body &body) {
  int64_t i = 0;
  for (; i + lanes_of<T> <= count; i += lanes_of<T>) body(i, Vector<T>{});
  for (; i < count; i++) body(i, T{});
}
template <class V, class T> SAN_INLINE V read(const T *p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T> SAN_INLINE void write(T *p, V v) { memcpy(p, &v, sizeof v); }
template <class V> SAN_INLINE V positive(V v) { return V{} > v ? V{} : v; }
template <class V> SAN_INLINE V gated(V gate, V v) { return gate > V{} ? v : V{}; }

// A sum of vectors and values.
template <class T> struct Sum {
  Vector<T> wide{};
  T rest{};
  SAN_INLINE void operator+=(Vector<T> v) { wide += v; }
  SAN_INLINE void operator+=(T v) { rest += v; }
  double total() const {
    double sum = rest;
    for (int lane = 0; lane < lanes_of<T>; lane++) sum += wide[lane];
    return sum;
  }
};

template <class T> class Channel {
 public:
  Channel(const NormArgs &args, int64_t channel)
      : args_(args), channel_(channel), count_(static_cast<double>(args.images * args.pixels)) {}

  void forward() const {
    double *mean = args_.stats + channel_, *variance = mean + args_.channels;
    measure(mean, variance);
    const Affine map = affine();
    if (args_.pool_width) return pool(map);
    each_block([&](const Block &block) {
      block.each_run([&](int64_t at, int64_t count) {
        const T *x = in(args_.x) + at;
        T *y = static_cast<T *>(args_.y) + at;
        each<T>(count, [&](int64_t i, auto kind) {
          using V = decltype(kind);
          write(y + i, positive<V>(read<V>(x + i) * map.scale + map.shift));
        });
      });
    });
  }

  void backward() const {
    const Affine map = affine();
    const double mean = args_.stats[channel_];
    const T centre = static_cast<T>(mean);
    double sum = 0, product = 0;  // of the gradient behind the ReLU, and of it by x - mean
    if (args_.pool_width) each_winner([&](T x, T grad, T *) {
      sum += grad;
      product += grad * static_cast<double>(x - centre);
    });
    else each_block([&](const Block &block) {
      Sum<T> sums, products;
      block.each_run([&](int64_t at, int64_t count) {
        const T *x = in(args_.x) + at, *grad = in(args_.grad) + at;
        each<T>(count, [&](int64_t i, auto kind) {
          using V = decltype(kind);
          const V v = read<V>(x + i), g = gated<V>(v * map.scale + map.shift, read<V>(grad + i));
          sums += g;
          products += g * (v - centre);
        });
      });
      sum += sums.total();
      product += products.total();
    });
    const double inverse = map.inverse;
    static_cast<T *>(args_.grad_weight)[channel_] = static_cast<T>(product * inverse);
    static_cast<T *>(args_.grad_bias)[channel_] = static_cast<T>(sum);
    const double slope = map.exact * inverse * inverse * product / count_;
    const T by_x = static_cast<T>(slope);
    const T constant = static_cast<T>(map.exact * sum / count_ - slope * mean);
    each_block([&](const Block &block) {
      block.each_run([&](int64_t at, int64_t count) {
        const T *x = in(args_.x) + at, *grad = in(args_.grad) + at;
        T *to = static_cast<T *>(args_.grad_x) + at;
        each<T>(count, [&](int64_t i, auto kind) {
          using V = decltype(kind);
          const V v = read<V>(x + i);
          V g{};
          if (!args_.pool_width) g = gated<V>(v * map.scale + map.shift, read<V>(grad + i));
          write<V>(to + i, g * map.scale - (v * by_x + constant));
        });
      });
    });
    if (args_.pool_width) each_winner([&](T, T grad, T *to) { *to += grad * map.scale; });
  }

 private:
  // What a value is multiplied by and what is added to it.
  struct Affine {
    double inverse, exact;
    T scale, shift;
  };

  Affine affine() const {
    const double mean = args_.stats[channel_], variance = args_.stats[args_.channels + channel_];
    const double inverse = 1 / std::sqrt(variance + args_.eps);
    const double exact = inverse * in(args_.weight)[channel_];
    return {inverse, exact, static_cast<T>(exact),
            static_cast<T>(in(args_.bias)[channel_] - mean * exact)};
  }

  // Calls body(first square in y, its first pixel in x) for each row of squares.
  template <class Body> void each_row(const Body &body) const {
    const int64_t width = args_.pool_width, rows = args_.pixels / width / 2;
    for (int64_t image = 0; image < args_.images; image++)
      for (int64_t row = 0; row < rows; row++) {
        const int64_t map = image * args_.channels + channel_;
        body((map * rows + row) * (width / 2), map * args_.pixels + 2 * row * width);
      }
  }

  void pool(const Affine &map) const {
    const int64_t width = args_.pool_width;
    each_row([&](int64_t to, int64_t from) {
      const T *upper = in(args_.x) + from, *lower = upper + width;
      T *y = static_cast<T *>(args_.y) + to;
      uint8_t *codes = args_.codes + to;
      each_square<lanes_of<T>>(width / 2, [&](int64_t i) __attribute__((always_inline)) {
        const auto made = [&](T x) __attribute__((always_inline)) {
          return x * map.scale + map.shift;
        };
        Winner<T> winner(made(upper[2 * i]));
        winner.meet(made(upper[2 * i + 1]), 1);
        winner.meet(made(lower[2 * i]), 2);
        winner.meet(made(lower[2 * i + 1]), 3);
        y[i] = winner.rectified();
        codes[i] = winner.code();
      });
    });
  }

  // Calls body(value of x, gradient, place of its gradient) for the winner of every square.
  template <class Body> void each_winner(const Body &body) const {
    const int64_t width = args_.pool_width;
    each_row([&](int64_t to, int64_t from) {
      for (int64_t i = 0; i < width / 2; i++) {
        const int code = args_.codes[to + i];
        if (code > 3) continue;
        const int64_t at = from + 2 * i + code % 2 + (code > 1 ? width : 0);
        body(in(args_.x)[at], in(args_.grad)[to + i], static_cast<T *>(args_.grad_x) + at);
      }
    });
  }

  static const T *in(const void *p) { return static_cast<const T *>(p); }

  // Values of a channel that are summed before anything is added to their sum: a part of an image,
  // or several images.
  struct Block {
    int64_t first, images, step, count;  // the first value; from image to image; of each
    double size() const { return static_cast<double>(images * count); }
    template <class Body> SAN_INLINE void each_run(const Body &body) const {
      for (int64_t image = 0; image < images; image++) body(first + image * step, count);
    }
  };

  template <class Body> void each_block(const Body &body) const {
    const int64_t step = args_.channels * args_.pixels, own = channel_ * args_.pixels;
    const int64_t together = std::max<int64_t>(1, kBlock / args_.pixels);
    for (int64_t image = 0; image < args_.images; image += together)
      for (int64_t at = 0; at < args_.pixels; at += kBlock)
        body(Block{image * step + own + at, std::min(together, args_.images - image), step,
                   std::min(kBlock, args_.pixels - at)});
  }

  // Mean and variance, block by block (Chan, Golub and LeVeque, 1979). Within a block they are
  // those of distances to a value near its mean, of which no rounding is left in the result.
  void measure(double *mean, double *variance) const {
    double seen = 0, squares = 0;
    *mean = 0;
    each_block([&](const Block &block) {
      Sum<T> sums, distances, squared;
      block.each_run([&](int64_t at, int64_t count) {
        const T *x = in(args_.x) + at;
        each<T>(count, [&](int64_t i, auto kind) { sums += read<decltype(kind)>(x + i); });
      });
      const T centre = static_cast<T>(sums.total() / block.size());
      block.each_run([&](int64_t at, int64_t count) {
        const T *x = in(args_.x) + at;
        each<T>(count, [&](int64_t i, auto kind) {
          const auto distance = read<decltype(kind)>(x + i) - centre;
          distances += distance;
          squared += distance * distance;
        });
      });
      const double offset = distances.total() / block.size(), more = seen + block.size();
      const double step = static_cast<double>(centre) + offset - *mean;
      squares += squared.total() - block.size() * offset * offset +
                 step * step * seen * block.size() / more;
      *mean += step * block.size() / more;
      seen = more;
    });
    const double found = squares / seen;
    *variance = found < 0 ? 0 : found;  // and NaN stays
  }

  const NormArgs &args_;
  const int64_t channel_;
  const double count_;
};

template <class T> void run(const NormArgs &args, bool backward) {
  parallel_for(args.channels, args.threads, [&](int64_t channel) {
    const Channel<T> one(args, channel);
    backward ? one.backward() : one.forward();
  });
}

int run(const NormArgs *args, bool backward) {
  if (args->images < 1 || args->pixels < 1) return kUnsupported;
  if (args->pool_width && (args->pixels % args->pool_width || !args->codes)) return kUnsupported;
  if (args->element == kDouble) run<double>(*args, backward);
  else run<float>(*args, backward);
  return kOk;
}

}  // namespace
}  // namespace san

extern "C" int sanrobust_norm_forward(const NormArgs *args) { return san::run(args, false); }
extern "C" int sanrobust_norm_backward(const NormArgs *args) { return san::run(args, true); }
