// Products of all queries with all keys of a pixel's patch, and their gradients.
#pragma once
#include "bands.h"
#include "tile.h"
#include "window.h"

namespace san::local {

class Clique {
 public:
  explicit Clique(const DotsArgs &args)
      : args_(args), near_(args.footprint * args.footprint),
        relation_(args.relation), merged_(2 * args.relation + args.beside),
        patch_(static_cast<int>(round_up(relation_, kLanes))),
        columns_(static_cast<int>(round_up(near_, kLanes))), bands_(args, merged_, 0) {}

  void forward() const {
    share_tasks(args_.images * args_.height, args_.threads, near_ * patch_ + patch_ * columns_,
                [&](int64_t task, float *queries) {
      float *keys = queries + near_ * patch_;  // one row for each channel
      std::fill_n(queries, near_ * patch_ + patch_ * columns_, 0.0f);
      const int64_t image = task / args_.height, y = task % args_.height;
      for (int64_t x = 0; x < args_.width; x++) {
        read(image, y, x, 0, [&](int j, int c) -> float & { return queries[j * patch_ + c]; });
        read(image, y, x, relation_, [&](int j, int c) -> float & { return keys[c * columns_ + j]; });
        float *out = args_.out + ((image * args_.height + y) * args_.width + x) * near_ * near_;
        multiply(queries, patch_, keys, columns_, relation_, columns_, [&](int j, int k, V sum) {
          store_up_to<kLanes>(out + j * near_ + k, sum, near_ - k);
        });
      }
    });
  }

  void backward() const {
    const int square = near_ * columns_;
    bands_.run(4 * near_ * patch_ + square, [&](const Band &band, float *memory) {
      float *queries = memory, *keys = queries + near_ * patch_, *sums = keys + near_ * patch_;
      float *turned = sums + 2 * near_ * patch_;  // the gradient, key by key
      std::fill_n(memory, 4 * near_ * patch_ + square, 0.0f);
      for (int64_t y = band.first; y < band.end; y++)
        for (int64_t x = 0; x < args_.width; x++) {
          read(band.image, y, x, 0, [&](int j, int c) -> float & { return queries[j * patch_ + c]; });
          read(band.image, y, x, relation_, [&](int j, int c) -> float & {
            return keys[j * patch_ + c];
          });
          const float *grad = args_.grad +
              ((band.image * args_.height + y) * args_.width + x) * near_ * near_;
          for (int j = 0; j < near_; j++)
            for (int k = 0; k < near_; k++) turned[k * columns_ + j] = grad[j * near_ + k];
          const auto into = [&](float *to) {
            return [to, this](int j, int c, V sum) { store<kLanes>(to + j * patch_ + c, sum); };
          };
          multiply(grad, near_, keys, patch_, near_, patch_, into(sums));
          multiply(turned, columns_, queries, patch_, near_, patch_, into(sums + near_ * patch_));
          each_neighbour(args_, y, x, [&](int j, int64_t down, int64_t across) {
            float *to = bands_.collected(band, down) + across * merged_;
            for (int c = 0; c < relation_; c++) {
              to[c] += sums[j * patch_ + c];
              to[relation_ + c] += sums[(near_ + j) * patch_ + c];
            }
          }, [](int) {});
        }
    }, true);
  }

 private:
  using V = Vec<kLanes>;

  // result(row, column, vector): rows [near_][inner] by columns [inner][columns], all filled up.
  template <class Result>
  void multiply(const float *rows, int64_t row_step, const float *columns, int64_t column_step,
                int inner, int count, const Result &result) const {
    for (int c = 0; c < count; c += kLanes)
      each_block<kRowsNarrow>(near_, [&](int first, auto size) {
        tile<decltype(size)::value, 1, kLanes>(
            rows + first * row_step, row_step, columns + c, column_step, inner,
            [](int, int) { return V{}; },
            [&](int m, int, V sum) { result(first + m, c, sum); });
      });
  }

  // Writes the channels of a pixel's neighbours, from `at` on, to place(j, channel).
  template <class Place>
  void read(int64_t image, int64_t y, int64_t x, int at, const Place &place) const {
    each_neighbour(args_, y, x, [&](int j, int64_t down, int64_t across) {
      const float *from = args_.qkv + ((image * args_.height + down) * args_.width + across) *
                                          merged_ + at;
      for (int c = 0; c < relation_; c++) place(j, c) = from[c];
    }, [&](int j) {
      for (int c = 0; c < relation_; c++) place(j, c) = 0.0f;
    });
  }

  const DotsArgs &args_;
  const int near_, relation_, merged_, patch_, columns_;
  const Bands bands_;
};

}  // namespace san::local
