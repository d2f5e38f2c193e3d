// The ends of the network and the undoing of pooling: memory-bound passes, each done once.
// Letters: a map is cut into tasks by image and row; lanes are channels.
#include "api.h"
#include "parallel.h"
#include "pointwise.h"
#include "simd.h"

namespace san {
namespace {

using V = Vec<kLanes>;
constexpr int kColours = 3;
constexpr int kSlab = 4 * kSignBits;    // channels that one task of the head sums
constexpr int kPartial = 4;             // partial sums, which keep the rounding of a mean small
constexpr int64_t kPixelsPerTask = 16;

// ---- The stem

// Row y of an image's colour planes and of what the stem makes of them.
struct StemRow {
  int64_t image, y, width;              // width: of the output
  const StemArgs &s;
  int64_t at(int colour, int64_t row) const {
    return ((image * kColours + colour) * s.height + row) * s.width;
  }
};

// The stem's weights of one vector of channels.
struct StemWeights {
  V of[kColours], bias;
  int channel;
  int64_t count;
  StemWeights(const StemArgs &s, int channel) : channel(channel), count(s.channels - channel) {
    for (int c = 0; c < kColours; c++)
      of[c] = load_up_to<kLanes>(s.weight + c * int64_t{s.channels} + channel, count);
    bias = load_up_to<kLanes>(s.bias + channel, count);
  }
  SAN_INLINE V apply(const float *const *planes, int64_t at) const {
    V sum = bias;
    SAN_UNROLL for (int c = 0; c < kColours; c++) sum += of[c] * planes[c][at];
    return sum;
  }
};

template <bool Pooled> void stem_row(const StemRow &row, const StemWeights &weights) {
  const StemArgs &s = row.s;
  constexpr int kSide = Pooled ? 2 : 1;
  const float *planes[kColours];
  for (int c = 0; c < kColours; c++) planes[c] = s.pixels + row.at(c, row.y * kSide);
  const int64_t rows = s.height / kSide;
  const int64_t first = (row.image * rows + row.y) * row.width * s.channels + weights.channel;
  for (int64_t x = 0; x < row.width; x++) {
    Largest<kLanes> largest(weights.apply(planes, x * kSide));
    if (Pooled) {
      largest.meet(weights.apply(planes, x * 2 + 1), 1);
      largest.meet(weights.apply(planes, x * 2 + s.width), 2);
      largest.meet(weights.apply(planes, x * 2 + s.width + 1), 3);
    }
    const int64_t to = first + x * s.channels;
    store_up_to<kLanes>(s.out + to, relu<kLanes>(largest.value), weights.count);
    if (s.codes) store_codes<kLanes>(s.codes + to, largest.codes(), weights.count);
  }
}

void stem_forward(const StemArgs &s) {
  const int side = s.pooled ? 2 : 1;
  const int64_t rows = s.height / side;
  parallel_for(s.images * rows, s.threads, [&](int64_t task) {
    const StemRow row{task / rows, task % rows, s.width / side, s};
    for (int channel = 0; channel < s.channels; channel += kLanes) {
      const StemWeights weights(s, channel);
      if (s.pooled) stem_row<true>(row, weights);
      else stem_row<false>(row, weights);
    }
  });
}

// The gradients of the Side x Side pixels under one pixel of the output.
template <int Side> void stem_pixel_backward(const StemRow &row, int64_t x) {
  const StemArgs &s = row.s;
  const int64_t from = ((row.image * (s.height / Side) + row.y) * row.width + x) * s.channels;
  V sum[Side * Side][kColours] = {};
  for (int channel = 0; channel < s.channels; channel += kLanes) {
    const int64_t count = s.channels - channel;
    const V grad = load_up_to<kLanes>(s.grad + from + channel, count);
    const Ints<kLanes> codes = load_codes<kLanes>(s.codes + from + channel, count);
    V weight[kColours];
    SAN_UNROLL for (int c = 0; c < kColours; c++)
      weight[c] = load_up_to<kLanes>(s.weight + c * int64_t{s.channels} + channel, count);
    SAN_UNROLL for (int i = 0; i < Side * Side; i++) {
      const V part = keep_winner<kLanes>(grad, codes, i);
      SAN_UNROLL for (int c = 0; c < kColours; c++) sum[i][c] += part * weight[c];
    }
  }
  SAN_UNROLL for (int i = 0; i < Side * Side; i++) {
    const int64_t y = row.y * Side + i / Side;
    SAN_UNROLL for (int c = 0; c < kColours; c++)
      s.grad_pixels[row.at(c, y) + x * Side + i % Side] = lanes_sum<kLanes>(sum[i][c]);
  }
}

template <int Side> void stem_backward(const StemArgs &s) {
  const int64_t rows = divide_up(s.height, Side);
  parallel_for(s.images * rows, s.threads, [&](int64_t task) {
    const StemRow row{task / rows, task % rows, s.width / Side, s};
    const bool unused = (row.y + 1) * Side > s.height;   // an odd last row
    for (int64_t x = 0; !unused && x < row.width; x++) stem_pixel_backward<Side>(row, x);
    const int64_t used = unused ? 0 : row.width * Side;
    for (int64_t y = row.y * Side; y < std::min((row.y + 1) * Side, s.height); y++) {
      for (int c = 0; c < kColours; c++)
        std::fill(s.grad_pixels + row.at(c, y) + used, s.grad_pixels + row.at(c, y) + s.width, 0);
    }
  });
}

// ---- The undoing of affine, ReLU and pooling

void unpool_pixel(const UnpoolArgs &u, int64_t from, float *to) {
  const int64_t place[4] = {0, u.channels, u.width * u.channels, (u.width + 1) * u.channels};
  for (int channel = 0; channel < u.channels; channel += kLanes) {
    const int64_t count = u.channels - channel;
    const V grad = load_up_to<kLanes>(u.grad + from + channel, count) *
                   load_up_to<kLanes>(u.scale + channel, count);
    const Ints<kLanes> codes = load_codes<kLanes>(u.codes + from + channel, count);
    SAN_UNROLL for (int i = 0; i < 4; i++)
      store_up_to<kLanes>(to + place[i] + channel, keep_winner<kLanes>(grad, codes, i), count);
  }
}

void unpool(const UnpoolArgs &u) {
  const int64_t rows = divide_up(u.height, 2), width = u.width / 2;
  const int64_t line = u.width * u.channels;
  parallel_for(u.images * rows, u.threads, [&](int64_t task) {
    const int64_t image = task / rows, y = task % rows;
    const int64_t lines = std::min<int64_t>(2, u.height - 2 * y);
    float *const to = u.out + (image * u.height + 2 * y) * line;
    const int64_t from = (image * (u.height / 2) + y) * width * u.channels;
    const int64_t used = lines == 2 ? width : 0;         // an odd last row is not used
    for (int64_t x = 0; x < used; x++)
      unpool_pixel(u, from + x * u.channels, to + 2 * x * u.channels);
    for (int64_t i = 0; i < lines; i++)
      std::fill(to + i * line + 2 * used * u.channels, to + (i + 1) * line, 0.0f);
  });
}

// ---- The head

// relu(affine) of the channels that share a word of signs is added to `sum`; returns the word.
SAN_INLINE uint16_t head_word(const HeadArgs &h, const float *pixel, int channel, float *sum) {
  uint32_t bits = 0;
  SAN_UNROLL for (int lane = 0; lane < kSignBits; lane += kLanes) {
    const V v = affine<kLanes>(pixel, h.scale, h.shift, channel + lane, h.channels);
    bits |= positive_bits<kLanes>(v) << lane;
    store<kLanes>(sum + lane, load<kLanes>(sum + lane) + relu<kLanes>(v));
  }
  return static_cast<uint16_t>(bits);
}

void head_slab(const HeadArgs &h, int64_t image, int first) {
  const int last = std::min(first + kSlab, h.channels);
  const int64_t words = divide_up(h.channels, kSignBits);
  alignas(64) float sums[kPartial][kSlab] = {};
  for (int64_t i = 0; i < h.pixels; i++) {
    const int64_t pixel = image * h.pixels + i;
    for (int channel = first; channel < last; channel += kSignBits) {
      const uint16_t word = head_word(h, h.x + pixel * h.channels, channel,
                                      sums[i % kPartial] + channel - first);
      if (h.signs) h.signs[pixel * words + channel / kSignBits] = word;
    }
  }
  for (int channel = first; channel < last; channel++) {
    const int c = channel - first;
    const float sum = (sums[0][c] + sums[1][c]) + (sums[2][c] + sums[3][c]);
    h.pooled[image * h.channels + channel] = sum / static_cast<float>(h.pixels);
  }
}

void head_forward(const HeadArgs &h) {
  const int64_t slabs = divide_up(h.channels, kSlab);
  parallel_for(h.images * slabs, h.threads, [&](int64_t task) {
    head_slab(h, task / slabs, static_cast<int>(task % slabs) * kSlab);
  });
}

void head_pixels_backward(const HeadArgs &h, int64_t image, int64_t first, int64_t last) {
  const int64_t words = divide_up(h.channels, kSignBits);
  for (int channel = 0; channel < h.channels; channel += kLanes) {
    const int64_t count = h.channels - channel;
    const V grad = load_up_to<kLanes>(h.grad + image * h.channels + channel, count) *
                   load_up_to<kLanes>(h.scale + channel, count) / static_cast<float>(h.pixels);
    for (int64_t pixel = first; pixel < last; pixel++) {
      const uint32_t bits = static_cast<uint32_t>(h.signs[pixel * words + channel / kSignBits]) >>
                            (channel % kSignBits);
      store_up_to<kLanes>(h.grad_x + pixel * h.channels + channel,
                          keep_bits<kLanes>(grad, bits), count);
    }
  }
}

void head_backward(const HeadArgs &h) {
  const int64_t groups = divide_up(h.pixels, kPixelsPerTask);
  parallel_for(h.images * groups, h.threads, [&](int64_t task) {
    const int64_t image = task / groups, first = task % groups * kPixelsPerTask;
    const int64_t last = std::min(first + kPixelsPerTask, h.pixels);
    head_pixels_backward(h, image, image * h.pixels + first, image * h.pixels + last);
  });
}

// ---- One map as query, key and value

template <class Pixels> void each_pixels(const RepeatArgs &r, const Pixels &pixels) {
  parallel_for(divide_up(r.pixels, kPixelsPerTask), r.threads, [&](int64_t task) {
    const int64_t first = task * kPixelsPerTask;
    for (int channel = 0; channel < r.channels; channel += kLanes)
      pixels(first, std::min(first + kPixelsPerTask, r.pixels), channel, r.channels - channel);
  });
}

void repeat_forward(const RepeatArgs &r) {
  each_pixels(r, [&](int64_t first, int64_t last, int channel, int64_t count) {
    for (int part = 0; part < 3; part++) {
      const V scale = load_up_to<kLanes>(r.scale + part * r.channels + channel, count);
      const V shift = load_up_to<kLanes>(r.shift + part * r.channels + channel, count);
      for (int64_t pixel = first; pixel < last; pixel++) {
        const V v = load_up_to<kLanes>(r.x + pixel * r.channels + channel, count);
        store_up_to<kLanes>(r.out + (pixel * 3 + part) * r.channels + channel,
                            v * scale + shift, count);
      }
    }
  });
}

void repeat_backward(const RepeatArgs &r) {
  each_pixels(r, [&](int64_t first, int64_t last, int channel, int64_t count) {
    for (int64_t pixel = first; pixel < last; pixel++) {
      V sum{};
      for (int part = 0; part < 3; part++)
        sum += load_up_to<kLanes>(r.grad + (pixel * 3 + part) * r.channels + channel, count) *
               load_up_to<kLanes>(r.scale + part * r.channels + channel, count);
      store_up_to<kLanes>(r.grad_x + pixel * r.channels + channel, sum, count);
    }
  });
}

}  // namespace
}  // namespace san

extern "C" int sanrobust_stem_forward(const StemArgs *s) {
  san::stem_forward(*s);
  return kOk;
}

extern "C" int sanrobust_stem_backward(const StemArgs *s) {
  const int64_t side = s->pooled ? 2 : 1;
  if (!s->codes && s->height >= side && s->width >= side) return kUnsupported;
  if (s->pooled) san::stem_backward<2>(*s);
  else san::stem_backward<1>(*s);
  return kOk;
}

extern "C" int sanrobust_unpool(const UnpoolArgs *u) {
  san::unpool(*u);
  return kOk;
}

extern "C" int sanrobust_head_forward(const HeadArgs *h) {
  san::head_forward(*h);
  return kOk;
}

extern "C" int sanrobust_head_backward(const HeadArgs *h) {
  if (!h->signs && h->images * h->pixels > 0) return kUnsupported;
  san::head_backward(*h);
  return kOk;
}

extern "C" int sanrobust_repeat_forward(const RepeatArgs *r) {
  san::repeat_forward(*r);
  return kOk;
}

extern "C" int sanrobust_repeat_backward(const RepeatArgs *r) {
  san::repeat_backward(*r);
  return kOk;
}
