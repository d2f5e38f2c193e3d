// Bands of rows that a backward pass computes side by side. What a band adds to rows of others it
// keeps to itself, in its halo; those rows are summed up in the end, in the order of the bands.
#pragma once
#include "learned.h"
#include "pointwise.h"
#include "tasks.h"

namespace san {

struct Band {
  int64_t image, first, end;  // its own rows
  float *halo;
  float *learned;  // its sums of the gradients of parameters, or null
};

// Rows of `merged` floats a pixel; those from `spread` on belong to what reaches other rows.
class Bands {
 public:
  template <class Args>
  Bands(const Args &args, int merged, int spread)
      : images_(args.images), height_(args.height), width_(args.width), reach_(args.footprint / 2),
        threads_(args.threads), merged_(merged), spread_(spread), count_(band_count(args.height)),
        halo_(count_ > 1 ? 2 * reach_ * width_ * merged : 0),
        result_(static_cast<float *>(args.grad_qkv)) {}

  // Runs body(band, memory of `floats` floats) for each band, its halo zero before and, unless
  // `adds`, its rows.
  // Sums over all bands, if any, are those of `learned`.
  template <class Body>
  void run(size_t floats, const Body &body, bool adds = false,
           Learned<float> *learned = nullptr) const {
    for (int64_t first = 0; first < images_; first += kImages) {
      const int64_t images = std::min(images_ - first, kImages), tasks = images * count_;
      float *halos = scratch<float>(1, static_cast<size_t>(tasks * halo_));
      share_tasks(tasks, threads_, floats, [&](int64_t task, float *memory) {
        const int64_t band = task % count_;
        const Band one{first + task / count_, start(band), start(band + 1), halos + task * halo_,
                       learned ? learned->of(task) : nullptr};
        if (!adds)
          std::fill_n(collected(one, one.first), (one.end - one.first) * width_ * merged_, 0.0f);
        std::fill_n(one.halo, halo_, 0.0f);
        body(one, memory);
      });
      if (count_ > 1)
        parallel_for(images * height_, threads_, [&](int64_t row) {
          add_halos(first, row / height_, row % height_, halos);
        });
      if (learned) learned->add(tasks);
    }
    if (learned) learned->write();
  }

  // How many bands are computed before their sums are added up.
  int64_t tasks() const { return std::min(images_, kImages) * count_; }

  // The row's gradient: in the result or, outside the band, in its halo.
  float *collected(const Band &band, int64_t y) const {
    if (y >= band.first && y < band.end)
      return result_ + (band.image * height_ + y) * width_ * merged_;
    const int64_t row = y < band.first ? y - band.first + reach_ : y - band.end + reach_;
    return band.halo + row * width_ * merged_;
  }

 private:
  // Images whose halos are kept at a time: a bound on memory, not a matter of numbers.
  static constexpr int64_t kImages = 16;

  int64_t start(int64_t band) const { return height_ * band / count_; }

  void add_halos(int64_t first_image, int64_t image, int64_t y, const float *halos) const {
    float *to = result_ + ((first_image + image) * height_ + y) * width_ * merged_;
    for (int64_t band = 0; band < count_; band++) {
      const int64_t first = start(band), end = start(band + 1);
      const bool above = y < first && y >= first - reach_, below = y >= end && y < end + reach_;
      if (!above && !below) continue;
      const float *from = halos + (image * count_ + band) * halo_ +
                          (above ? y - first + reach_ : y - end + reach_) * width_ * merged_;
      for (int64_t x = 0; x < width_; x++)
        for (int c = spread_; c < merged_; c += kLanes)
          store_up_to<kLanes>(to + x * merged_ + c,
                              load_up_to<kLanes>(to + x * merged_ + c, merged_ - c) +
                                  load_up_to<kLanes>(from + x * merged_ + c, merged_ - c),
                              merged_ - c);
    }
  }

  const int64_t images_, height_, width_, reach_;
  const int threads_, merged_, spread_;
  const int64_t count_, halo_;
  float *const result_;
};

}  // namespace san
