// The first layer of a network in training: three colours by a 1x1 convolution with its normalisation
// folded in, ReLU and a maximum over 2x2, planar; its gradients are those of the parameters.
#include "api.h"
#include "learned.h"
#include "squares.h"

namespace san {
namespace {

constexpr int kColours = 3;
constexpr int64_t kParts = 4;  // of an image, for threads to share

class Stem {
 public:
  explicit Stem(const LearnedStemArgs &args)
      : args_(args), pixels_(args.height * args.width), rows_(args.height / 2),
        columns_(args.width / 2) {}

  void forward() const {
    each_row([&](int64_t, const float *upper, int channel, int64_t at) {
      constexpr int64_t kSquares = 64;
      alignas(64) float made[2][2 * kSquares];
      for (int64_t first = 0; first < columns_; first += kSquares) {
        const int64_t count = std::min(kSquares, columns_ - first);
        for (int row = 0; row < 2; row++)
          convolve(upper + row * args_.width + 2 * first, channel, 2 * count, made[row]);
        pool(made[0], made[1], count, args_.y + at + first, args_.codes + at + first);
      }
    });
  }

  void backward() const {
    const int64_t channels = args_.channels;
    Learned<float> learned({{args_.grad_weight, channels * kColours}, {args_.grad_bias, channels}},
                           args_.images * kParts);
    each_row([&](int64_t task, const float *upper, int channel, int64_t at) {
      float sum[kColours + 1] = {};
      for (int64_t i = 0; i < columns_; i++) {
        const int code = args_.codes[at + i];
        if (code > 3) continue;
        const float grad = args_.grad[at + i];
        const float *p = upper + 2 * i + code % 2 + (code > 1 ? args_.width : 0);
        for (int k = 0; k < kColours; k++) sum[k] += grad * p[k * pixels_];
        sum[kColours] += grad;
      }
      float *own = learned.of(task);
      for (int k = 0; k < kColours; k++) own[channel * kColours + k] += sum[k];
      own[channels * kColours + channel] += sum[kColours];
    });
    learned.add(args_.images * kParts);
    learned.write();
  }

 private:
  void convolve(const float *__restrict pixels, int channel, int64_t count,
                float *__restrict made) const {
    const float *weight = args_.weight + channel * kColours, bias = args_.bias[channel];
    const float red = weight[0], green = weight[1], blue = weight[2];
    const float *__restrict second = pixels + pixels_, *__restrict third = second + pixels_;
    for (int64_t i = 0; i < count; i++)
      made[i] = red * pixels[i] + green * second[i] + blue * third[i] + bias;
  }

  static void pool(const float *__restrict upper, const float *__restrict lower, int64_t count,
                   float *__restrict y, uint8_t *__restrict codes) {
    each_square<kLanes>(count, [&](int64_t i) __attribute__((always_inline)) {
      Winner<float> winner(upper[2 * i]);
      winner.meet(upper[2 * i + 1], 1);
      winner.meet(lower[2 * i], 2);
      winner.meet(lower[2 * i + 1], 3);
      y[i] = winner.rectified();
      codes[i] = winner.code();
    });
  }

  // Calls body(task, the upper of two rows of the first colour, channel, its first square in y).
  template <class Body> void each_row(const Body &body) const {
    parallel_for(args_.images * kParts, args_.threads, [&](int64_t task) {
      const int64_t image = task / kParts, part = task % kParts;
      const float *pixels = args_.pixels + image * kColours * pixels_;
      for (int64_t row = rows_ * part / kParts; row < rows_ * (part + 1) / kParts; row++)
        for (int channel = 0; channel < args_.channels; channel++)
          body(task, pixels + 2 * row * args_.width, channel,
               ((image * args_.channels + channel) * rows_ + row) * columns_);
    });
  }

  const LearnedStemArgs &args_;
  const int64_t pixels_, rows_, columns_;
};

}  // namespace
}  // namespace san

extern "C" int sanrobust_learned_stem_forward(const LearnedStemArgs *args) {
  if (args->height < 2 || args->width < 2) return kUnsupported;
  san::Stem(*args).forward();
  return kOk;
}
extern "C" int sanrobust_learned_stem_backward(const LearnedStemArgs *args) {
  if (args->height < 2 || args->width < 2) return kUnsupported;
  san::Stem(*args).backward();
  return kOk;
}
