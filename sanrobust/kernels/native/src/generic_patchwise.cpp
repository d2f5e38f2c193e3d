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
        b2_(typed<T>(args.b2)), h_(typed<T>(args.h)), grad_h_(typed<T>(args.grad_h)),
        learns_(args.grad_w1t || args.grad_w2t) {}

  size_t scratch_values(bool) const {
    return (2 * static_cast<size_t>(inner_) + 2 * shape_.hidden) * lanes;
  }

  void weigh(const Tile<T> &tile, T *weight, T *memory) const {
    T *patch = memory, *hidden = memory + inner_ * lanes;
    if (w1_) {
      hide(tile, patch, hidden);
    } else {
      each_hidden(tile, [&](int at, int64_t place) { hidden[at] = place < 0 ? T(0) : h_[place]; });
    }
    rectify(hidden, shape_.hidden);
    start(weight, b2_, weights_);
    product(weight, hidden, w2t_, shape_.hidden, weights_, From::kOut);
  }

  // The hidden layer before its relu.
  void hide(const Tile<T> &tile, T *patch, T *hidden) const {
    collect(tile, patch);
    start(hidden, b1_, shape_.hidden);
    product(hidden, patch, w1t_, inner_, shape_.hidden, From::kOut);
  }

  void write_hidden(const Tile<T> &tile, T *h, T *memory) const {
    T *hidden = memory + inner_ * lanes;
    hide(tile, memory, hidden);
    each_hidden(tile, [&](int at, int64_t place) { if (place >= 0) h[place] = hidden[at]; });
  }

  // The gradients of a tile from that of the hidden layer in rows.
  void read_hidden(const Tile<T> &tile, const T *grad, T *memory, T *sums) const {
    T *hidden = memory + inner_ * lanes, *grad_hidden = hidden + shape_.hidden * lanes;
    collect(tile, memory);
    each_hidden(tile, [&](int at, int64_t place) {
      grad_hidden[at] = place < 0 ? T(0) : grad[place];
    });
    unhide(tile, memory, grad_hidden, sums);
  }

  // The parameters' gradients that are wanted.
  std::vector<typename Learned<T>::Gradient> gradients(const PatchwiseArgs &args) const {
    const int64_t hidden = shape_.hidden, keys = inner_ - shape_.relation;
    return {{args.grad_w1t, inner_ * hidden},
            {args.grad_key_scale, keys},
            {args.grad_key_shift, keys},
            {args.grad_w2t, hidden * weights_},
            {args.grad_b2, weights_}};
  }

  void unweigh(const Tile<T> &tile, const T *, T *grad_weight, T *memory, T *sums) const {
    T *patch = memory, *hidden = memory + inner_ * lanes;
    T *grad_hidden = hidden + shape_.hidden * lanes;
    product(grad_hidden, grad_weight, w2_, weights_, shape_.hidden, From::kZero);
    mask(grad_hidden, hidden, shape_.hidden);
    if (learns_) {
      add_products(sums, hidden, shape_.hidden, grad_weight, weights_);
      add_to(sums + shape_.hidden * weights_ * lanes, grad_weight, weights_);
    }
    if (!w1_)
      return each_hidden(tile, [&](int at, int64_t place) {
        if (place >= 0) grad_h_[place] = grad_hidden[at];
      });
    unhide(tile, patch, grad_hidden, sums);
  }

 private:
  // From the gradient of the hidden layer to those of query, key and what made it.
  void unhide(const Tile<T> &tile, const T *patch, T *grad_hidden, T *sums) const {
    T *grad_patch = grad_hidden + shape_.hidden * lanes;
    product(grad_patch, grad_hidden, w1_, shape_.hidden, inner_, From::kZero);
    mask(grad_patch, patch, inner_);
    if (learns_) {
      T *to = sums + inner_ * shape_.hidden * lanes;
      const T *grad_keys = grad_patch + shape_.relation * lanes;
      const int keys = inner_ - shape_.relation;
      add_products(sums, patch, inner_, grad_hidden, shape_.hidden);
      for (int at = 0; at < keys; at++)
        put(to + at * lanes, get(to + at * lanes) +
            get(grad_keys + at * lanes) * key(tile, at / shape_.relation, at % shape_.relation));
      add_to(to + keys * lanes, grad_keys, keys);
    }
    for (int r = 0; r < shape_.relation; r++)
      tile.add(r, tile.grid.centre(), get(grad_patch + r * lanes));
    for (int j = 0; j < shape_.neighbours; j++)
      for (int r = 0; r < shape_.relation; r++) {
        const int at = j * shape_.relation + r;
        tile.add(shape_.relation + r, tile.grid.offset[j],
                 get(grad_patch + (shape_.relation + at) * lanes) * scale_[at]);
      }
  }

  static void add_to(T *sums, const T *values, int count) {
    for (int i = 0; i < count * lanes; i += lanes) put(sums + i, get(sums + i) + get(values + i));
  }

  Vector<T> key(const Tile<T> &tile, int j, int r) const {
    return get(tile.at(shape_.relation + r, tile.grid.offset[j]));
  }

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
        put(patch, rectified<T>(key(tile, j, r) * *scale++ + *shift++));
      }
  }

  static void start(T *values, const T *bias, int count) {
    for (int i = 0; i < count; i++) put(values + i * lanes, Vector<T>{} + bias[i]);
  }

  Shape shape_;
  int inner_, weights_;
  const T *scale_, *shift_, *w1_, *w1t_, *b1_, *w2_, *w2t_, *b2_, *h_;
  T *grad_h_;
  const bool learns_;
};

template <class T> int hide(const PatchwiseArgs &args) {
  const Call<Patchwise<T>, PatchwiseArgs> call(args);
  call.each_tile(call.tasks, 0, [&](int64_t, const Tile<T> &tile, T *memory) {
    call.weighing.write_hidden(tile, typed<T>(args.h), memory);
  });
  return kOk;
}

template <class T> int unhide(const PatchwiseArgs &args) {
  const Call<Patchwise<T>, PatchwiseArgs> call(args);
  call.scatter(0, [&](const Tile<T> &tile, T *memory, T *sums) {
    call.weighing.read_hidden(tile, typed<T>(args.grad), memory, sums);
  });
  return kOk;
}

}  // namespace

int generic_forward(const PatchwiseArgs &args) {
  if (args.hidden_alone) return args.element == kDouble ? hide<double>(args) : hide<float>(args);
  return args.element == kDouble ? forward<Patchwise<double>>(args)
                                 : forward<Patchwise<float>>(args);
}
int generic_backward(const PatchwiseArgs &args) {
  if (args.hidden_alone)
    return args.element == kDouble ? unhide<double>(args) : unhide<float>(args);
  return args.element == kDouble ? backward<Patchwise<double>>(args)
                                 : backward<Patchwise<float>>(args);
}

}  // namespace san
