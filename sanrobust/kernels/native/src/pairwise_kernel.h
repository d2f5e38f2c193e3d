// Pairwise attention of float maps, forward and backward, for one relation width.
//
// Reflected neighbours repeat pixels within reach, so each distinct neighbour of the window
// clipped to the map is computed once and counted as often as it occurs. Zero padding is one more
// neighbour, with key and value 0. A pixel's pairs are the rows of two small matrix products.
#pragma once
#include <limits>
#include <vector>

#include "api.h"
#include "parallel.h"
#include "tile.h"

namespace san {

constexpr int kMostNeighbours = 121;  // footprint 11
constexpr int kMostReach = 5;
constexpr int kShare = 8;  // channels that share an attention weight

// The sizes of one relation width. Channel c of the value has the attention weight c % kGroups;
// a "bundle" is the channels of as many groups as fill a vector.
template <int Relation> struct PairwiseShape {
  static constexpr int kGroups = Relation / 2, kChannels = kShare * kGroups;
  static constexpr int kRow = 2 * Relation + kChannels;  // floats of a pixel in qkv
  static constexpr int kSignWords = Relation / 16;
  static constexpr int kLane = lanes_for(Relation);
  static constexpr int kGroupLane = lanes_for(kGroups);
  static constexpr int kRows = rows_for(Relation);
  static constexpr int kRepeat = kLane / kGroupLane;  // 2 where the groups fill half a vector
  static constexpr int kBundle = kShare / kRepeat;    // vectors of channels in a bundle
  using Wide = Vec<kLane>;

  // Where vector v of the bundle that starts with group s lies among the channels.
  static constexpr int channel(int s, int v) { return kRepeat > 1 ? v * kLane : v * kGroups + s; }

  // The weights of a bundle's groups, for every lane of a vector of channels.
  static SAN_INLINE Wide weights(const float *p) {
    if constexpr (kRepeat > 1) return load_twice<kLane>(p);
    else return load<kLane>(p);
  }
  // The sum over a bundle's channels of one group, from the sum over its vectors.
  static SAN_INLINE Vec<kGroupLane> groups_sum(Wide sum) {
    if constexpr (kRepeat > 1) return halves_sum<kLane>(sum);
    else return sum;
  }
};

// The neighbours inside the map along one axis: positions first..last, and how often each occurs.
struct Reach {
  int first, last;
  float times[2 * kMostReach + 1];
  bool once;  // each occurs once, and none lies outside
  int count() const { return last - first + 1; }
};

inline std::vector<Reach> reaches(int64_t side, int footprint, int padding) {
  std::vector<Reach> found(static_cast<size_t>(side));
  const int reach = footprint / 2;
  for (int i = 0; i < side; i++) {
    Reach &each = found[static_cast<size_t>(i)];
    each.first = std::max(0, i - reach);
    each.last = static_cast<int>(std::min<int64_t>(side - 1, i + reach));
    each.once = each.count() == footprint;
    for (int j = each.first; j <= each.last; j++)
      each.times[j - each.first] =
          padding == kReflect ? static_cast<float>(multiplicity(i, j, side, reach)) : 1.0f;
  }
  return found;
}

// What forward and backward know about the map and its windows.
template <int Relation> class PairwiseMap : protected PairwiseShape<Relation> {
 protected:
  using Shape = PairwiseShape<Relation>;

  // The distinct neighbours of one pixel, row by row; with zero padding the outside comes last.
  struct Window {
    int count, inside;  // distinct neighbours, and those inside the map
    bool once;          // every neighbour occurs once
    const float *key[kMostNeighbours];
    const float *table[kMostNeighbours];
    float times[kMostNeighbours];
  };

  explicit PairwiseMap(const PairwiseArgs &args)
      : args_(args), width_(static_cast<int>(args.width)), height_(static_cast<int>(args.height)),
        reach_(args.footprint / 2), positions_(args.footprint * args.footprint),
        rows_(reaches(args.height, args.footprint, args.padding)),
        columns_(reaches(args.width, args.footprint, args.padding)),
        qkv_(static_cast<const float *>(args.qkv)) {}

  bool outside(const Reach &row, const Reach &column) const {
    return args_.padding == kZeros && !(row.once && column.once);
  }

  void find(Window &window, int64_t image, int y, int x) const {
    const Reach &row = rows_[static_cast<size_t>(y)], &column = columns_[static_cast<size_t>(x)];
    const float *table = static_cast<const float *>(args_.table);
    if (args_.table_per_pixel)
      table += (static_cast<int64_t>(y) * width_ + x) * (positions_ + 1) * Relation;
    int n = 0;
    for (int j = row.first; j <= row.last; j++) {
      const float *key = pixel(image, j, column.first) + Relation;
      const int displacement = (j - y + reach_) * args_.footprint + column.first - x + reach_;
      const float *entry = table + displacement * Relation;
      for (int i = 0; i < column.count(); i++, n++) {
        window.key[n] = key + i * Shape::kRow;
        window.table[n] = entry + i * Relation;
        window.times[n] = row.times[j - row.first] * column.times[i];
      }
    }
    window.inside = n;
    window.once = row.once && column.once;
    if (outside(row, column)) {
      window.key[n] = kOutside;
      window.table[n] = table + positions_ * Relation;
      window.times[n] = static_cast<float>(positions_ - n);
      n++;
    }
    window.count = n;
  }

  // Moves the window of the pixel to the left one pixel on, where both see whole rows.
  void shift(Window &window) const {
    const int inside = window.inside, entry = args_.table_per_pixel * (positions_ + 1) * Relation;
    for (int n = 0; n < inside; n++) window.key[n] += Shape::kRow;
    if (entry)
      for (int n = 0; n < window.count; n++) window.table[n] += entry;
  }

  // Whether a pixel and the one to its left see whole rows.
  bool follows(int x) const {
    return x > 0 && columns_[static_cast<size_t>(x)].once &&
           columns_[static_cast<size_t>(x) - 1].once;
  }

  const float *pixel(int64_t image, int y, int x) const {
    return qkv_ + ((image * height_ + y) * width_ + x) * Shape::kRow;
  }

  // Key and value outside the map.
  alignas(64) static constexpr float kOutside[Relation + Shape::kChannels] = {};

  const PairwiseArgs &args_;
  const int width_, height_, reach_, positions_;
  const std::vector<Reach> rows_, columns_;
  const float *const qkv_;
};

template <int Relation> class PairwiseForward : PairwiseMap<Relation> {
  using Map = PairwiseMap<Relation>;
  using Shape = PairwiseShape<Relation>;
  using Window = typename Map::Window;
  using Map::args_;
  static constexpr int kGroups = Shape::kGroups, kChannels = Shape::kChannels;
  static constexpr int kLane = Shape::kLane, kGroupLane = Shape::kGroupLane;

 public:
  explicit PairwiseForward(const PairwiseArgs &args)
      : Map(args), past_caches_(past_caches(args)) {}

  void run() const {
    const int64_t pixels = args_.images * args_.height * args_.width;
    constexpr int64_t chunk = std::max(1, 512 / Relation);
    parallel_for((pixels + chunk - 1) / chunk, args_.threads, [&](int64_t task) {
      const int64_t end = std::min(pixels, (task + 1) * chunk);
      Window window;
      for (int64_t i = task * chunk; i < end; i++) {
        const int64_t row = i / this->width_;
        const int x = static_cast<int>(i - row * this->width_);
        if (i > task * chunk && this->follows(x)) this->shift(window);
        else this->find(window, row / this->height_, static_cast<int>(row % this->height_), x);
        attend(window, i);
      }
      if (past_caches_) end_streams();
    });
  }

 private:
  // Weights too many for the caches would only drive other things out of them.
  static bool past_caches(const PairwiseArgs &args) {
    const int64_t weights = args.images * args.height * args.width * args.footprint *
                            args.footprint * kGroups;
    return weights > (1 << 20) && reinterpret_cast<uintptr_t>(args.alpha) % 64 == 0;
  }

  void attend(const Window &window, int64_t pixel) const {
    alignas(64) float weight[kMostNeighbours * kGroups], top[kGroups], inverse[kGroups];
    std::fill(top, top + kGroups, -std::numeric_limits<float>::infinity());
    const float *query = this->qkv_ + pixel * Shape::kRow;
    uint16_t *signs = args_.signs;
    if (signs) signs += pixel * this->positions_ * Shape::kSignWords;
    each_block<Shape::kRows>(window.count, [&](int first, auto rows) {
      logits<decltype(rows)::value>(query, window, first, weight + first * kGroups, top, signs);
    });
    softmax(window, top, weight, inverse);
    if (args_.alpha) keep(window.count, weight, inverse, pixel);
    aggregate(window, weight, inverse, pixel);
  }

  template <int Rows>
  SAN_INLINE void logits(const float *query, const Window &window, int first, float *out,
                         float *top, uint16_t *signs) const {
    alignas(64) float t[Rows * Relation], h[Rows * Relation];
    for (int r = 0; r < Relation; r += kLane) {
      const Vec<kLane> own = load<kLane>(query + r);
      SAN_UNROLL for (int m = 0; m < Rows; m++)
        store<kLane>(t + m * Relation + r, relu<kLane>(own - load<kLane>(window.key[first + m] + r)));
    }
    product<Rows, Relation>(
        t, Relation, static_cast<const float *>(args_.w1t), Relation, Relation,
        [&](int m, int c) { return load<kLane>(window.table[first + m] + c); },
        [&](int m, int c, Vec<kLane> sum) { store<kLane>(h + m * Relation + c, relu<kLane>(sum)); });
    if (signs) keep_signs<Rows>(h, signs + first * Shape::kSignWords);
    constexpr int vectors = kGroups / kGroupLane % 2 == 0 ? 2 : 1;
    for (int s = 0; s < kGroups; s += vectors * kGroupLane) {
      Vec<kGroupLane> most[vectors];
      SAN_UNROLL for (int v = 0; v < vectors; v++)
        most[v] = load<kGroupLane>(top + s + v * kGroupLane);
      tile<Rows, vectors, kGroupLane>(
          h, Relation, static_cast<const float *>(args_.w2t) + s, kGroups, Relation,
          [](int, int) { return Vec<kGroupLane>{}; },
          [&](int m, int v, Vec<kGroupLane> sum) {
            most[v] = at_least<kGroupLane>(most[v], sum);
            store<kGroupLane>(out + m * kGroups + s + v * kGroupLane, sum);
          });
      SAN_UNROLL for (int v = 0; v < vectors; v++)
        store<kGroupLane>(top + s + v * kGroupLane, most[v]);
    }
  }

  template <int Rows> static SAN_INLINE void keep_signs(const float *h, uint16_t *signs) {
    for (int word = 0; word < Rows * Shape::kSignWords; word++) {
      uint32_t bits = 0;
      SAN_UNROLL for (int l = 0; l < 16; l += kLane)
        bits |= positive_bits<kLane>(load<kLane>(h + word * 16 + l)) << l;
      signs[word] = static_cast<uint16_t>(bits);
    }
  }

  // Leaves times * exp(logit - maximum) in `weight` and one over the sum of that in `inverse`.
  static void softmax(const Window &window, const float *top, float *weight, float *inverse) {
    if constexpr (Shape::kRepeat == 2)
      if (window.once) return softmax_by_two(window.count, top, weight, inverse);
    for (int s = 0; s < kGroups; s += kGroupLane) {
      const Vec<kGroupLane> most = load<kGroupLane>(top + s);
      Vec<kGroupLane> sum{};
      for (int j = 0; j < window.count; j++) {
        float *place = weight + j * kGroups + s;
        const Vec<kGroupLane> power =
            exp_nonpositive<kGroupLane>(load<kGroupLane>(place) - most) * window.times[j];
        sum += power;
        store<kGroupLane>(place, power);
      }
      store<kGroupLane>(inverse + s, 1.0f / sum);
    }
  }

  // The same for two neighbours in a vector: an odd number of them, each occurring once.
  static void softmax_by_two(int count, const float *top, float *weight, float *inverse) {
    const Vec<kLane> most = load_twice<kLane>(top);
    Vec<kLane> sum{};
    const int last = (count - 1) * kGroups;
    for (int i = 0; i < last; i += kLane) {
      const Vec<kLane> power = exp_nonpositive<kLane>(load<kLane>(weight + i) - most);
      sum += power;
      store<kLane>(weight + i, power);
    }
    const Vec<kGroupLane> power = exp_nonpositive<kGroupLane>(
        load<kGroupLane>(weight + last) - load<kGroupLane>(top));
    store<kGroupLane>(weight + last, power);
    store<kGroupLane>(inverse, 1.0f / (halves_sum<kLane>(sum) + power));
  }

  void keep(int count, const float *weight, const float *inverse, int64_t pixel) const {
    float *alpha = static_cast<float *>(args_.alpha) + pixel * this->positions_ * kGroups;
    for (int i = 0; i < count * kGroups; i += kGroups)
      SAN_UNROLL for (int s = 0; s < kGroups; s += kGroupLane) {
        const Vec<kGroupLane> share =
            load<kGroupLane>(weight + i + s) * load<kGroupLane>(inverse + s);
        if (past_caches_) stream<kGroupLane>(alpha + i + s, share);
        else store<kGroupLane>(alpha + i + s, share);
      }
  }

  void aggregate(const Window &window, const float *weight, const float *inverse,
                 int64_t pixel) const {
    constexpr int bundle = Shape::kBundle;
    for (int s = 0; s < kGroups; s += kGroupLane) {
      Vec<kLane> sum[bundle];
      SAN_UNROLL for (int v = 0; v < bundle; v++) sum[v] = Vec<kLane>{};
      for (int j = 0; j < window.count; j++) {
        const Vec<kLane> factor = Shape::weights(weight + j * kGroups + s);
        const float *value = window.key[j] + Relation;
        SAN_UNROLL for (int v = 0; v < bundle; v++)
          sum[v] += factor * load<kLane>(value + Shape::channel(s, v));
      }
      const Vec<kLane> factor = Shape::weights(inverse + s);
      SAN_UNROLL for (int v = 0; v < bundle; v++)
        write(pixel, Shape::channel(s, v), sum[v] * factor);
    }
  }

  SAN_INLINE void write(int64_t pixel, int c, Vec<kLane> sum) const {
    const float *scale = static_cast<const float *>(args_.scale);
    const float *shift = static_cast<const float *>(args_.shift);
    const int64_t place = pixel * kChannels + c;
    if (args_.y) store<kLane>(static_cast<float *>(args_.y) + place, sum);
    if (!args_.out) return;
    if (scale) sum = relu<kLane>(sum * load<kLane>(scale + c) + load<kLane>(shift + c));
    store<kLane>(static_cast<float *>(args_.out) + place, sum);
  }

  const bool past_caches_;
};

// Needs no products but those of the gradient: forward kept the attention weights and which
// hidden units were positive. Gradients of keys and values are scattered into the rows of a band;
// what falls outside the band waits in its halo until all bands are done.
template <int Relation> class PairwiseBackward : PairwiseMap<Relation> {
  using Map = PairwiseMap<Relation>;
  using Shape = PairwiseShape<Relation>;
  using Map::args_;
  using Map::height_;
  using Map::reach_;
  using Map::width_;
  static constexpr int kGroups = Shape::kGroups, kChannels = Shape::kChannels;
  static constexpr int kLane = Shape::kLane, kGroupLane = Shape::kGroupLane;
  // Neighbouring pixels treated together, so that a value and its gradient are loaded once for
  // all of them; few where a pixel alone fills the cache.
  static constexpr int kStrip = std::max(1, std::min(8, 512 / Relation));

 public:
  explicit PairwiseBackward(const PairwiseArgs &args)
      : Map(args), bands_(bands(args)), row_(args.width * Shape::kRow),
        grad_qkv_(static_cast<float *>(args.grad_qkv)) {}

  void run() const {
    const int64_t halo = bands_ > 1 ? 2 * reach_ * row_ : 0;
    // So many images at a time keep the threads busy and bound the halos.
    const int64_t most = (8 * static_cast<int64_t>(args_.threads) + bands_ - 1) / bands_;
    const int64_t together = std::max<int64_t>(1, std::min(args_.images, most));
    float *halos = scratch<float>(0, static_cast<size_t>(together * bands_ * halo));
    for (int64_t image = 0; image < args_.images; image += together) {
      const int64_t tasks = std::min(together, args_.images - image) * bands_;
      parallel_for(tasks, args_.threads, [&](int64_t task) {
        band(image + task / bands_, static_cast<int>(task % bands_), halos + task * halo);
      });
      if (halo)
        parallel_for(tasks, args_.threads, [&](int64_t task) {
          join(image + task / bands_, static_cast<int>(task % bands_), halos + task * halo, halo);
        });
    }
  }

 private:
  // Adjacent pixels of one row, with what the products below need of them.
  struct Strip {
    int64_t image;
    int y, x, count;
    const Reach *row;
    float *target[2 * kMostReach + 1];  // gradient of each row in reach, at column 0
    alignas(64) float grad[kStrip * kChannels];   // of y
    alignas(64) float inner[kStrip * kGroups];    // sum over a group's channels of grad * y
    alignas(64) float logit[kStrip * kMostNeighbours * kGroups];  // gradient of the logits
  };

  // A band must be at least as high as its neighbours' halos.
  static int bands(const PairwiseArgs &args) {
    int count = band_count(args.height);
    while (count > 1 && args.height / count < args.footprint / 2) count--;
    return count;
  }
  int start(int band) const { return static_cast<int>(args_.height * band / bands_); }

  // Row y of the gradient: the band's own, or one of the halo's (above, then below).
  float *target(int64_t image, int band, int y, float *halo) const {
    const int first = start(band), end = start(band + 1);
    if (y < first) return halo + (y - first + reach_) * row_;
    if (y >= end) return halo + (y - end + reach_) * row_;
    return grad_qkv_ + (image * height_ + y) * row_;
  }

  void band(int64_t image, int band, float *halo) const {
    Strip strip;
    strip.image = image;
    int cleared = std::max(0, start(band) - reach_);
    for (int y = start(band); y < start(band + 1); y++) {
      strip.y = y;
      strip.row = &this->rows_[static_cast<size_t>(y)];
      for (; cleared <= strip.row->last; cleared++)
        memset(target(image, band, cleared, halo), 0, static_cast<size_t>(row_) * 4);
      for (int j = strip.row->first; j <= strip.row->last; j++)
        strip.target[j - strip.row->first] = target(image, band, j, halo);
      for (int x = 0; x < width_; x += kStrip) {
        strip.x = x;
        strip.count = std::min(kStrip, width_ - x);
        treat(strip);
      }
    }
  }

  // Adds the neighbouring bands' halos to the rows of this band, the upper one's first.
  void join(int64_t image, int band, const float *halo, int64_t size) const {
    const int first = start(band), end = start(band + 1);
    if (band > 0)
      for (int y = first; y < std::min(end, first + reach_); y++)
        add(grad_qkv_ + (image * height_ + y) * row_, halo - size + (y - first + reach_) * row_);
    if (band + 1 < bands_)
      for (int y = std::max(first, end - reach_); y < end; y++)
        add(grad_qkv_ + (image * height_ + y) * row_, halo + size + (y - end + reach_) * row_);
  }

  void add(float *row, const float *halo) const {
    for (int x = 0; x < width_; x++, row += Shape::kRow, halo += Shape::kRow)
      SAN_UNROLL for (int c = Relation; c < Shape::kRow; c += kLane)
        store<kLane>(row + c, load<kLane>(row + c) + load<kLane>(halo + c));
  }

  void treat(Strip &strip) const {
    for (int i = 0; i < strip.count; i++) start_pixel(strip, i);
    for (int s = 0; s < kGroups; s += kGroupLane) values(strip, s);
    Keys keys;
    memset(keys.nowhere, 0, sizeof keys.nowhere);
    for (int i = 0; i < strip.count; i++) {
      if (i > 0 && this->follows(strip.x + i)) shift(keys);
      else find(keys, strip, strip.x + i);
      relations(strip, i, keys);
    }
  }

  int64_t index(const Strip &strip, int i) const {
    return (strip.image * height_ + strip.y) * width_ + strip.x + i;
  }

  // Undoes scale, shift and relu, and starts what all of a pixel's logits share.
  void start_pixel(Strip &strip, int i) const {
    const int64_t place = index(strip, i) * kChannels;
    const float *from = static_cast<const float *>(args_.grad) + place;
    const float *y = static_cast<const float *>(args_.y) + place;
    const float *scale = static_cast<const float *>(args_.scale);
    const float *shift = static_cast<const float *>(args_.shift);
    for (int s = 0; s < kGroups; s += kGroupLane) {
      Vec<kLane> sum{};
      SAN_UNROLL for (int v = 0; v < Shape::kBundle; v++) {
        const int c = Shape::channel(s, v);
        __builtin_prefetch(from + c + kStrip * kChannels, 0, 2);
        __builtin_prefetch(y + c + kStrip * kChannels, 0, 2);
        Vec<kLane> grad = load<kLane>(from + c);
        const Vec<kLane> out = load<kLane>(y + c);
        if (scale) {
          const Vec<kLane> factor = load<kLane>(scale + c);
          grad = keep_positive<kLane>(grad * factor, out * factor + load<kLane>(shift + c));
        }
        store<kLane>(strip.grad + i * kChannels + c, grad);
        sum += grad * out;
      }
      store<kGroupLane>(strip.inner + i * kGroups + s, Shape::groups_sum(sum));
    }
  }

  // The groups from s on: value gradients, and logit gradients from those of the weights.
  void values(Strip &strip, int s) const {
    const int first = std::max(0, strip.x - reach_);
    const int last = std::min(width_ - 1, strip.x + strip.count - 1 + reach_);
    for (int j = 0; j < strip.row->count(); j++) {
      View view[kStrip];
      for (int i = 0; i < strip.count; i++) {
        const Reach &column = this->columns_[static_cast<size_t>(strip.x + i)];
        const int slot = j * column.count() - column.first;
        view[i] = {alpha(strip, i) + slot * kGroups + s, logit(strip, i) + slot * kGroups + s};
      }
      for (int x = first; x <= last; x++) value(strip, view, s, j, x);
    }
    for (int i = 0; i < strip.count; i++) {
      const Reach &column = this->columns_[static_cast<size_t>(strip.x + i)];
      if (!this->outside(*strip.row, column)) continue;
      const int slot = strip.row->count() * column.count() * kGroups + s;
      const Vec<kGroupLane> inner = load<kGroupLane>(strip.inner + i * kGroups + s);
      const Vec<kGroupLane> weight = load<kGroupLane>(alpha(strip, i) + slot);
      store<kGroupLane>(logit(strip, i) + slot, -weight * inner);
    }
  }

  // Where a pixel keeps what it knows of a row's neighbours, as if from column 0 on.
  struct View {
    const float *alpha;
    float *logit;
  };

  const float *alpha(const Strip &strip, int i) const {
    return static_cast<const float *>(args_.alpha) + index(strip, i) * this->positions_ * kGroups;
  }
  float *logit(Strip &strip, int i) const {
    return strip.logit + i * this->positions_ * kGroups;
  }

  // The neighbour in column x of the j-th row in reach, for all pixels that see it.
  SAN_INLINE void value(const Strip &strip, const View *view, int s, int j, int x) const {
    constexpr int bundle = Shape::kBundle;
    const float *value = Map::pixel(strip.image, strip.row->first + j, x) + 2 * Relation;
    float *target = strip.target[j] + x * Shape::kRow + 2 * Relation;
    Vec<kLane> sum[bundle], own[bundle];
    SAN_UNROLL for (int v = 0; v < bundle; v++) {
      sum[v] = load<kLane>(target + Shape::channel(s, v));
      own[v] = load<kLane>(value + Shape::channel(s, v));
    }
    // The next strip's weights: too many, and in too odd an order, to arrive by themselves.
    const int ahead = kStrip * this->positions_ * kGroups;
    const int first = std::max(0, x - reach_ - strip.x);
    const int last = std::min(strip.count - 1, x + reach_ - strip.x);
    for (int i = first; i <= last; i++) {
      const float *grad = strip.grad + i * kChannels;
      const float *alpha = view[i].alpha + x * kGroups;
      __builtin_prefetch(alpha + ahead, 0, 2);
      const Vec<kLane> weight = Shape::weights(alpha);
      Vec<kLane> even{}, odd{};
      SAN_UNROLL for (int v = 0; v < bundle; v += 2) {
        const Vec<kLane> a = load<kLane>(grad + Shape::channel(s, v));
        const Vec<kLane> b = load<kLane>(grad + Shape::channel(s, v + 1));
        even += a * own[v];
        odd += b * own[v + 1];
        sum[v] += weight * a;
        sum[v + 1] += weight * b;
      }
      const Vec<kGroupLane> gradient = Shape::groups_sum(even + odd);
      store<kGroupLane>(view[i].logit + x * kGroups,
                        (gradient - load<kGroupLane>(strip.inner + i * kGroups + s)) *
                            load<kGroupLane>(alpha));
    }
    SAN_UNROLL for (int v = 0; v < bundle; v++)
      store<kLane>(target + Shape::channel(s, v), sum[v]);
  }

  // The keys that a pixel sees, and where their gradients gather.
  struct Keys {
    int count, inside;
    const float *key[kMostNeighbours];
    float *target[kMostNeighbours];
    alignas(64) float nowhere[Relation];  // what is outside the map needs no gradient
  };

  void find(Keys &keys, const Strip &strip, int x) const {
    const Reach &column = this->columns_[static_cast<size_t>(x)];
    int n = 0;
    for (int j = 0; j < strip.row->count(); j++) {
      const float *key = Map::pixel(strip.image, strip.row->first + j, column.first) + Relation;
      float *target = strip.target[j] + column.first * Shape::kRow + Relation;
      for (int i = 0; i < column.count(); i++, n++) {
        keys.key[n] = key + i * Shape::kRow;
        keys.target[n] = target + i * Shape::kRow;
      }
    }
    keys.inside = n;
    if (this->outside(*strip.row, column)) {
      keys.key[n] = this->kOutside;
      keys.target[n++] = keys.nowhere;
    }
    keys.count = n;
  }

  static void shift(Keys &keys) {
    for (int n = 0; n < keys.inside; n++) {
      keys.key[n] += Shape::kRow;
      keys.target[n] += Shape::kRow;
    }
  }

  // From the logits' gradients of pixel i to those of its query and of the keys it sees.
  void relations(Strip &strip, int i, const Keys &keys) const {
    const int64_t place = index(strip, i);
    const float *query = this->qkv_ + place * Shape::kRow;
    float *grad_query = grad_qkv_ + place * Shape::kRow;
    const uint16_t *signs = args_.signs + place * this->positions_ * Shape::kSignWords;
    alignas(64) float sum[Relation] = {};
    each_block<Shape::kRows>(keys.count, [&](int first, auto rows) {
      pairs<decltype(rows)::value>(query, keys.key + first, keys.target + first, logit(strip, i) + first * kGroups,
                                   signs + first * Shape::kSignWords, sum);
    });
    memcpy(grad_query, sum, sizeof sum);
  }

  template <int Rows>
  SAN_INLINE void pairs(const float *query, const float *const *key, float *const *target,
                        const float *logit, const uint16_t *signs, float *grad_query) const {
    alignas(64) float h[Rows * Relation];
    product<Rows, Relation>(
        logit, kGroups, static_cast<const float *>(args_.w2), Relation, kGroups,
        Nothing<Relation>{}, [&](int m, int c, Vec<kLane> sum) {
          const uint32_t bits = signs[m * Shape::kSignWords + c / 16];
          store<kLane>(h + m * Relation + c, keep_bits<kLane>(sum, bits >> c % 16));
        });
    constexpr int vectors = Relation / kLane % 2 == 0 ? 2 : 1;
    for (int c = 0; c < Relation; c += vectors * kLane) {
      Vec<kLane> own[vectors], sum[vectors];
      SAN_UNROLL for (int v = 0; v < vectors; v++) {
        own[v] = load<kLane>(query + c + v * kLane);
        sum[v] = load<kLane>(grad_query + c + v * kLane);
      }
      tile<Rows, vectors, kLane>(
          h, Relation, static_cast<const float *>(args_.w1) + c, Relation, Relation,
          [](int, int) { return Vec<kLane>{}; },
          [&](int m, int v, Vec<kLane> grad) {
            const int place = c + v * kLane;
            grad = keep_positive<kLane>(grad, own[v] - load<kLane>(key[m] + place));
            sum[v] += grad;
            store<kLane>(target[m] + place, load<kLane>(target[m] + place) - grad);
          });
      SAN_UNROLL for (int v = 0; v < vectors; v++)
        store<kLane>(grad_query + c + v * kLane, sum[v]);
    }
  }

  const int bands_;
  const int64_t row_;  // floats of a row of the map
  float *const grad_qkv_;
};

}  // namespace san
