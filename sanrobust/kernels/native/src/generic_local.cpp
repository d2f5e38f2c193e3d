// Scalar attention of any shape, in float and double.
#include "generic.h"
#include "generic_pass.h"

namespace san {
namespace {

using namespace lanewise;

template <class T> class Local {
 public:
  using Element = T;
  static constexpr int lanes = lanes_of<T>;

  Local(const LocalArgs &args, const std::vector<Grid> &)
      : shape_(args), embedding_(typed<T>(args.embedding)),
        grad_offset_(typed<T>(args.grad_offset)) {}

  size_t scratch_values(bool backward) const {
    return (static_cast<size_t>(offsets()) + (backward ? shape_.relation : 0)) * lanes;
  }

  void weigh(const Tile<T> &tile, T *weight, T *memory) const {
    if (embedding_) embed(tile, memory);
    for (int j = 0; j < shape_.neighbours; j++)
      for (int g = 0; g < shape_.groups; g++) {
        Vector<T> sum{};
        for (int c = g; c < shape_.keys; c += shape_.groups)
          sum += query(tile, c) * key(tile, c, j);
        if (embedding_) sum += get(memory + down(j, g)) + get(memory + across(j, g));
        put(weight + (j * shape_.groups + g) * lanes, sum);
      }
    normalise(shape_, weight);
  }

  std::vector<typename Learned<T>::Gradient> gradients(const LocalArgs &) const { return {}; }

  void unweigh(const Tile<T> &tile, const T *weight, T *grad_weight, T *memory, T *) const {
    T *grad_offset = memory, *grad_query = memory + offsets() * lanes;
    const Vector<T> inside = tile.inside();
    unnormalise(shape_, weight, grad_weight);
    std::fill(memory, memory + (offsets() + shape_.relation) * lanes, T(0));
    for (int j = 0; j < shape_.neighbours; j++)
      for (int g = 0; g < shape_.groups; g++) {
        const Vector<T> slope = get(grad_weight + (j * shape_.groups + g) * lanes);
        for (int c = g; c < shape_.keys; c += shape_.groups) {
          add(grad_query + c * lanes, slope * key(tile, c, j));
          tile.add(shape_.relation + c, tile.grid.offset[j],
                   where_positive<T>(inside, slope * query(tile, c)));
        }
        if (!embedding_) continue;
        add(grad_offset + down(j, g), slope);
        add(grad_offset + across(j, g), slope);
      }
    if (embedding_) unembed(grad_offset, grad_query);
    if (grad_offset_) write_offsets(tile, grad_offset);
    for (int c = 0; c < shape_.relation; c++)
      tile.add(c, tile.grid.centre(), where_positive<T>(inside, get(grad_query + c * lanes)));
  }

 private:
  // Logits of offsets: of each row of neighbours, then of each column, and head.
  int offsets() const { return embedding_ ? 2 * shape_.footprint * shape_.groups : 0; }
  int down(int j, int g) const { return (j / shape_.footprint * shape_.groups + g) * lanes; }
  int across(int j, int g) const {
    return ((shape_.footprint + j % shape_.footprint) * shape_.groups + g) * lanes;
  }

  static void add(T *to, Vector<T> v) { put(to, get(to) + v); }
  Vector<T> query(const Tile<T> &tile, int c) const {
    return get(tile.at(c, tile.grid.centre()));
  }
  Vector<T> key(const Tile<T> &tile, int c, int j) const {
    return get(tile.at(shape_.relation + c, tile.grid.offset[j]));
  }

  // Calls body(offset's number, query channel, the embedding's value) for all of them.
  template <class Body> void each_embedded(const Body &body) const {
    const int half = shape_.relation / 2;
    for (int offset = 0; offset < 2 * shape_.footprint; offset++)
      for (int c = 0; c < half; c++)
        body(offset * shape_.groups + c % shape_.groups,
             offset < shape_.footprint ? c : half + c, embedding_[offset * half + c]);
  }

  void embed(const Tile<T> &tile, T *logits) const {
    std::fill(logits, logits + offsets() * lanes, T(0));
    each_embedded([&](int logit, int c, T value) {
      add(logits + logit * lanes, query(tile, c) * value);
    });
  }

  void unembed(const T *grad_offset, T *grad_query) const {
    each_embedded([&](int logit, int c, T value) {
      add(grad_query + c * lanes, get(grad_offset + logit * lanes) * value);
    });
  }

  void write_offsets(const Tile<T> &tile, const T *grad_offset) const {
    for (int lane = 0; lane < lanes; lane++) {
      if (tile.pixel()[lane] < 0) continue;
      T *to = grad_offset_ + (tile.first + tile.pixel()[lane]) * offsets();
      for (int i = 0; i < offsets(); i++) to[i] = grad_offset[i * lanes + lane];
    }
  }

  Shape shape_;
  const T *embedding_;
  T *grad_offset_;
};

}  // namespace

int generic_forward(const LocalArgs &args) {
  return args.element == kDouble ? forward<Local<double>>(args) : forward<Local<float>>(args);
}
int generic_backward(const LocalArgs &args) {
  return args.element == kDouble ? backward<Local<double>>(args) : backward<Local<float>>(args);
}

}  // namespace san
