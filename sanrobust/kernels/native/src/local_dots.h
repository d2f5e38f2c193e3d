// Products of a query with the keys around it, as a result of its own: one head without a softmax.
#pragma once
#include "local_backward.h"

namespace san::local {

struct Told {
  explicit Told(const DotsArgs &args) {
    told.images = args.images, told.height = args.height, told.width = args.width;
    told.relation = told.keys = args.relation, told.channels = args.beside, told.groups = 1;
    told.footprint = args.footprint, told.padding = args.padding, told.threads = args.threads;
    told.qkv = args.qkv, told.grad_qkv = args.grad_qkv;
  }
  LocalArgs told{};
};

class Dots : Told, Backward<1> {
 public:
  explicit Dots(const DotsArgs &args)
      : Told(args), Backward<1>(told), dots_(args), whole_(args.relation % kLanes == 0) {}

  void forward() const {
    share_tasks(dots_.images * height_, dots_.threads, weights_size(),
                [&](int64_t task, float *memory) {
      each_run(task / height_, task % height_, [&](const Run &run) {
        float *out = dots_.out + first_of(run) * near_;
        if (whole_) {
          dots(run, pixel(run), merged_, key_at_, dots_.relation, memory);
          for (int m = 0; m < run.count; m++)
            std::copy_n(memory + m * row_, near_, out + m * near_);
          return;
        }
        each_pair(run, [&](int m, int j, int64_t y, int64_t x) {
          const float *query = pixel(run) + m * merged_;
          const float *key = row(run.image, y) + x * merged_ + key_at_;
          float sum = 0;
          for (int c = 0; c < dots_.relation; c++) sum += query[c] * key[c];
          out[m * near_ + j] = sum;
        }, [&](int m, int j) { out[m * near_ + j] = 0; });
      });
    });
  }

  void backward() const {
    bands_.run(weights_size(), [&](const Band &band, float *memory) {
      for (int64_t y = band.first; y < band.end; y++)
        each_run(band.image, y, [&](const Run &run) {
          if (whole_) vectors(band, run, memory);
          else values(band, run);
        });
    }, true);
  }

 private:
  int64_t first_of(const Run &run) const {
    return (run.image * height_ + run.y) * width_ + run.x;
  }

  void vectors(const Band &band, const Run &run, float *slopes) const {
    for (int m = 0; m < run.count; m++) {
      std::copy_n(dots_.grad + (first_of(run) + m) * near_, near_, slopes + m * row_);
      fold(run.y, run.x + m, slopes + m * row_);
    }
    float *result = bands_.collected(band, run.y) + run.x * merged_;
    sums(run, slopes, key_at_, dots_.relation, [&](int m, int c, V sum) {
      float *to = result + m * merged_ + c;
      store<kLanes>(to, load<kLanes>(to) + sum);
    });
    spread(band, run, slopes, pixel(run), merged_, key_at_, dots_.relation);
  }

  void values(const Band &band, const Run &run) const {
    each_pair(run, [&](int m, int j, int64_t y, int64_t x) {
      const float slope = dots_.grad[(first_of(run) + m) * near_ + j];
      const float *query = pixel(run) + m * merged_;
      const float *key = row(run.image, y) + x * merged_ + key_at_;
      float *to_query = bands_.collected(band, run.y) + (run.x + m) * merged_;
      float *to_key = bands_.collected(band, y) + x * merged_ + key_at_;
      for (int c = 0; c < dots_.relation; c++) {
        to_query[c] += slope * key[c];
        to_key[c] += slope * query[c];
      }
    }, [](int, int) {});
  }

  // Calls inside(m, j, row, column) for each pixel of a run and neighbour, outside(m, j) where it
  // has none.
  template <class Inside, class Outside>
  void each_pair(const Run &run, const Inside &inside, const Outside &outside) const {
    for (int m = 0; m < run.count; m++)
      each_neighbour(dots_, run.y, run.x + m,
                     [&](int j, int64_t y, int64_t x) { inside(m, j, y, x); },
                     [&](int j) { outside(m, j); });
  }

  const DotsArgs &dots_;
  const bool whole_;
};

}  // namespace san::local
