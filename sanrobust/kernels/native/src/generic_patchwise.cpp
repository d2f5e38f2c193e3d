// Patchwise attention of any shape, in float and double.
#include "generic.h"
#include "generic_pass.h"

namespace san {
namespace {

using namespace lanewise;

template <class T> class Patchwise {
 public:
  using Element = T;
  static constexpr int lanes = lanes_of<T>;

  Patchwise(const PatchwiseArgs &args, const std::vector<Grid> &)
      : shape_(args), inner_((1 + shape_.neighbours) * shape_.relation),
        weights_(shape_.neighbours * shape_.groups), scale_(typed<T>(args.key_scale)),
        shift_(typed<T>(args.key_shift)), w1_(typed<T>(args.w1)), w1t_(typed<T>(args.w1t)),
        b1_(typed<T>(args.b1)), w2_(typed<T>(args.w2)), w2t_(typed<T>(args.w2t)),
        b2_(typed<T>(args.b2)), h_(typed<T>(args.h)), grad_h_(typed<T>(args.grad_h)) {}

  size_t scratch_values(bool) const {
    return (2 * static_cast<size_t>(inner_) + 2 * shape_.hidden) * lanes;
  }

  void weigh(const Tile<T> &tile, T *weight, T *memory) const {
    T *patch = memory, *hidden = memory + inner_ * lanes;
    if (w1_) {
      collect(tile, patch);
      start(hidden, b1_, shape_.hidden);
      product(hidden, patch, w1t_, inner_, shape_.hidden, From::kOut);
    } else {
      each_hidden(tile, [&](int at, int64_t place) { hidden[at] = place < 0 ? T(0) : h_[place]; });
    }
    rectify(hidden, shape_.hidden);
    start(weight, b2_, weights_);
    product(weight, hidden, w2t_, shape_.hidden, weights_, From::kOut);
  }

  void unweigh(const Tile<T> &tile, const T *, T *grad_weight, T *memory) const {
    T *patch = memory, *hidden = memory + inner_ * lanes;
    T *grad_hidden = hidden + shape_.hidden * lanes;
    T *grad_patch = grad_hidden + shape_.hidden * lanes;
    product(grad_hidden, grad_weight, w2_, weights_, shape_.hidden, From::kZero);
    mask(grad_hidden, hidden, shape_.hidden);
    if (!w1_)
      return each_hidden(tile, [&](int at, int64_t place) {
        if (place >= 0) grad_h_[place] = grad_hidden[at];
      });
    product(grad_patch, grad_hidden, w1_, shape_.hidden, inner_, From::kZero);
    mask(grad_patch, patch, inner_);
    for (int r = 0; r < shape_.relation; r++)
      tile.add(r, tile.grid.centre(), get(grad_patch + r * lanes));
    for (int j = 0; j < shape_.neighbours; j++)
      for (int r = 0; r < shape_.relation; r++) {
        const int at = j * shape_.relation + r;
        tile.add(shape_.relation + r, tile.grid.offset[j],
                 get(grad_patch + (shape_.relation + at) * lanes) * scale_[at]);
      }
  }

 private:
  // Calls body(place in the tile, in the rows of hidden layers or -1) for all of a tile's.
  template <class Body> void each_hidden(const Tile<T> &tile, const Body &body) const {
    for (int lane = 0; lane < lanes; lane++)
      for (int m = 0; m < shape_.hidden; m++)
        body(m * lanes + lane, tile.pixel()[lane] < 0
                                   ? -1 : (tile.first + tile.pixel()[lane]) * shape_.hidden + m);
  }

  void collect(const Tile<T> &tile, T *patch) const {
    for (int r = 0; r < shape_.relation; r++, patch += lanes)
      put(patch, rectified<T>(get(tile.at(r, tile.grid.centre()))));
    const T *scale = scale_, *shift = shift_;
    for (int j = 0; j < shape_.neighbours; j++)
      for (int r = 0; r < shape_.relation; r++, patch += lanes) {
        const Vector<T> key = get(tile.at(shape_.relation + r, tile.grid.offset[j]));
        put(patch, rectified<T>(key * *scale++ + *shift++));
      }
  }

  static void start(T *values, const T *bias, int count) {
    for (int i = 0; i < count; i++) put(values + i * lanes, Vector<T>{} + bias[i]);
  }

  Shape shape_;
  int inner_, weights_;
  const T *scale_, *shift_, *w1_, *w1t_, *b1_, *w2_, *w2t_, *b2_, *h_;
  T *grad_h_;
};

}  // namespace

int generic_forward(const PatchwiseArgs &args) {
  return args.element == kDouble ? forward<Patchwise<double>>(args)
                                 : forward<Patchwise<float>>(args);
}
int generic_backward(const PatchwiseArgs &args) {
  return args.element == kDouble ? backward<Patchwise<double>>(args)
                                 : backward<Patchwise<float>>(args);
}

}  // namespace san
