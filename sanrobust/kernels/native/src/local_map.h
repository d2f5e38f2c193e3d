// Scalar attention of float maps, lanes = channels: what both passes share.
//
// Head g has the channels c with c % Heads = g. So lane l of any vector of channels belongs to head
// l % Heads, and what all neighbours of a pixel have, [neighbour][head], fills vectors too.
#pragma once
#include <limits>

#include "api.h"
#include "pointwise.h"
#include "turn.h"
#include "window.h"

namespace san::local {

using V = Vec<kLanes>;
constexpr int kRun = 8;                                    // pixels of a row taken together
constexpr int kTogether = kVectorRegisters >= 32 ? 4 : 2;  // of those, in registers
constexpr int kBundle = 4;                                 // vectors of channels in registers

// Pixels of one row of the map that follow each other.
struct Run {
  int64_t image, y, x;
  int count;
};

template <int Step, int... Lane>
SAN_INLINE V swap_lanes(V v, std::integer_sequence<int, Lane...>) {
  return shuffle<(Lane ^ Step)...>(v, v);
}

// Every lane joined with those of its head, in the order of halving.
template <int Heads, int Step = kLanes / 2, class Join>
SAN_INLINE V across(V v, const Join &join) {
  if constexpr (Step < Heads) return v;
  else return across<Heads, Step / 2>(join(v, swap_lanes<Step>(v, Lanes{})), join);
}
SAN_INLINE V larger(V a, V b) { return a > b ? a : b; }
SAN_INLINE V added(V a, V b) { return a + b; }

template <int Heads> class Map : protected Window<Heads> {
 protected:
  using On = Window<Heads>;
  using On::footprint_, On::height_, On::near_, On::reach_, On::width_;

  explicit Map(const LocalArgs &args)
      : On(args), args_(args), merged_(args.relation + args.keys + args.channels),
        key_at_(args.relation), value_at_(args.relation + args.keys),
        row_(static_cast<int>(round_up(near_ * Heads, kLanes))),
        qkv_(static_cast<const float *>(args.qkv)),
        embedding_(static_cast<const float *>(args.embedding)) {}

  // Floats of what all neighbours of a run's pixels have, and of its offsets.
  size_t weights_size() const { return static_cast<size_t>(kRun * row_); }
  size_t offsets_size() const { return static_cast<size_t>(2 * footprint_ * Heads); }

  // A row of the map in rows of `merged_` floats.
  const float *row(int64_t image, int64_t y) const {
    return qkv_ + (image * height_ + y) * width_ * merged_;
  }
  const float *pixel(const Run &run) const { return row(run.image, run.y) + run.x * merged_; }

  // Calls body(run) for the runs of a row.
  template <class Body> void each_run(int64_t image, int64_t y, const Body &body) const {
    for (int64_t x = 0; x < width_; x += kRun)
      body(Run{image, y, x, static_cast<int>(std::min<int64_t>(kRun, width_ - x))});
  }

  // The weights of a run's neighbours.
  void weigh(const Run &run, float *weights, float *offsets) const {
    if (args_.keys) dots(run, pixel(run), merged_, key_at_, args_.relation, weights);
    for (int m = 0; m < run.count; m++) {
      float *own = weights + m * row_;
      if (!args_.keys) std::fill_n(own, near_ * Heads, 0.0f);
      if (embedding_) {
        embed(pixel(run) + m * merged_, offsets);
        add_offsets(offsets, own);
      }
      softmax(own);
    }
  }

  // products[i][j][g]: those of pixel i's `left` with what its neighbours have from `at` on, summed
  // over the channels of each head. Neighbours outside the map have what `unfold` gives them.
  void dots(const Run &run, const float *left, int64_t step, int at, int channels,
            float *products) const {
    this->template each_together<kTogether>(run.count, [&](int64_t m, auto count) {
      dots<decltype(count)::value>(run, m, left + m * step, step, at, channels,
                                   products + m * row_);
    });
    for (int m = 0; m < run.count; m++) this->unfold(run.y, run.x + m, products + m * row_);
  }

  // result(i, channel, vector): the sums over the neighbours of pixels m.. of what they have from
  // `at` on under the folded `weights`.
  template <class Result>
  SAN_INLINE void sums(const Run &run, const float *weights, int at, int channels,
                       const Result &result) const {
    this->template each_together<kTogether>(run.count, [&](int64_t m, auto count) {
      each_bundle(channels, [&](int c, auto vectors) {
        sums<decltype(count)::value, decltype(vectors)::value>(run, m, weights + m * row_, at, c,
                                                               result);
      });
    });
  }

  // Calls body(first channel, constant number of vectors) for all channels.
  template <class Body> static SAN_INLINE void each_bundle(int channels, const Body &body) {
    int c = 0;
    for (; c + kBundle * kLanes <= channels; c += kBundle * kLanes)
      body(c, std::integral_constant<int, kBundle>{});
    for (; c < channels; c += kLanes) body(c, std::integral_constant<int, 1>{});
  }

  // The weight of one neighbour by lane.
  static SAN_INLINE V by_lane(const float *weight) {
    if constexpr (Heads == 1) return splat<kLanes>(*weight);
    else if constexpr (Heads == kLanes) return load<kLanes>(weight);
    else return load_twice<kLanes>(weight);
  }
  static SAN_INLINE void store_heads(float *to, V sum) {
    if constexpr (Heads == 1) *to = lanes_sum<kLanes>(sum);
    else if constexpr (Heads == kLanes) store<kLanes>(to, sum);
    else store<kLanes / 2>(to, halves_sum<kLanes>(sum));
  }

  const LocalArgs &args_;
  const int merged_, key_at_, value_at_, row_;
  const float *const qkv_, *const embedding_;

 private:
  template <int Count>
  SAN_INLINE void dots(const Run &run, int64_t m, const float *left, int64_t step, int at,
                       int channels, float *products) const {
    const int64_t x = run.x + m;
    const Clip down(run.y, height_, reach_);
    for (int dy = down.first; dy < down.end; dy++) {
      const float *right = row(run.image, run.y + dy - reach_) + at;
      float *to = products + (dy * footprint_ + reach_) * Heads;
      this->template each_within<Count>(x, 0, width_, [&](int64_t from, auto... has)
                                                          __attribute__((always_inline)) {
        constexpr bool meets[] = {decltype(has)::value...};
        const float *other = right + from * merged_;
        V sum[Count]{};
        for (int c = 0; c < channels; c += kLanes) {
          const V v = load<kLanes>(other + c);
          SAN_UNROLL for (int i = 0; i < Count; i++)
            if (meets[i]) sum[i] += load<kLanes>(left + i * step + c) * v;
        }
        SAN_UNROLL for (int i = 0; i < Count; i++)
          if (meets[i]) store_heads(to + i * row_ + (from - x - i) * Heads, sum[i]);
      });
    }
  }

  template <int Count, int Vectors, class Result>
  SAN_INLINE void sums(const Run &run, int64_t m, const float *weights, int at, int channel,
                       const Result &result) const {
    const int64_t x = run.x + m;
    const Clip down(run.y, height_, reach_);
    V sum[Count][Vectors]{};
    for (int dy = down.first; dy < down.end; dy++) {
      const float *right = row(run.image, run.y + dy - reach_) + at + channel;
      const float *weight = weights + (dy * footprint_ + reach_) * Heads;
      this->template each_within<Count>(x, 0, width_, [&](int64_t from, auto... has)
                                                          __attribute__((always_inline)) {
        constexpr bool meets[] = {decltype(has)::value...};
        V factor[Count];
        SAN_UNROLL for (int i = 0; i < Count; i++)
          if (meets[i]) factor[i] = by_lane(weight + i * row_ + (from - x - i) * Heads);
        SAN_UNROLL for (int v = 0; v < Vectors; v++) {
          const V other = load<kLanes>(right + from * merged_ + v * kLanes);
          SAN_UNROLL for (int i = 0; i < Count; i++)
            if (meets[i]) sum[i][v] += factor[i] * other;
        }
      });
    }
    SAN_UNROLL for (int i = 0; i < Count; i++)
      SAN_UNROLL for (int v = 0; v < Vectors; v++)
        result(static_cast<int>(m) + i, channel + v * kLanes, sum[i][v]);
  }

  // The logits of a query's offsets, [2][footprint][head].
  void embed(const float *query, float *offsets) const {
    const int half = args_.relation / 2;
    for (int offset = 0; offset < 2 * footprint_; offset++) {
      const float *own = query + (offset < footprint_ ? 0 : half);
      const float *embedded = embedding_ + offset * half;
      V sum{};
      for (int c = 0; c < half; c += kLanes)
        sum += load<kLanes>(own + c) * load<kLanes>(embedded + c);
      store_heads(offsets + offset * Heads, sum);
    }
  }

  void add_offsets(const float *offsets, float *logits) const {
    const int side = footprint_ * Heads;
    for (int dy = 0; dy < footprint_; dy++) {
      const V down = by_lane(offsets + dy * Heads);
      for (int i = 0; i < side; i += kLanes) {
        float *to = logits + dy * side + i;
        const V sum = down + load_up_to<kLanes>(offsets + side + i, side - i);
        store_up_to<kLanes>(to, load_up_to<kLanes>(to, side - i) + sum, side - i);
      }
    }
  }

  // Softmax over a pixel's neighbours. What fills up the last vector gets next to nothing.
  void softmax(float *logits) const {
    std::fill(logits + near_ * Heads, logits + row_, -std::numeric_limits<float>::infinity());
    V largest = load<kLanes>(logits), sum{};
    for (int i = kLanes; i < row_; i += kLanes)
      largest = larger(largest, load<kLanes>(logits + i));
    largest = across<Heads>(largest, larger);
    for (int i = 0; i < row_; i += kLanes) {
      const V v = exp_nonpositive<kLanes>(load<kLanes>(logits + i) - largest);
      store<kLanes>(logits + i, v);
      sum += v;
    }
    const V share = 1.0f / across<Heads>(sum, added);
    for (int i = 0; i < row_; i += kLanes)
      store<kLanes>(logits + i, load<kLanes>(logits + i) * share);
  }
};

}  // namespace san::local
