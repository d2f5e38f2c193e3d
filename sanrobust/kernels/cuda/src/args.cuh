// Arguments of the kernels, passed by value and mirrored by ctypes (arguments.py).
// Letters: K2 = footprint * footprint neighbours, row by row; a pixel's rank is
// (image * height + y) * width + x. Parameters and scratch are float, or double for double maps.
#pragma once

namespace san {

typedef long long int64;

enum Padding { kReflect = 0, kZeros = 1 };
enum Delta { kSubtraction = 0, kHadamard = 1, kDot = 2, kConcatenation = 3 };

// A tensor of maps; strides in elements.
struct Map {
  void *data;
  int64 image, row, column, channel;
};

// Weights of the neighbours of every output position; strides in elements.
struct Weights {
  void *data;
  int64 image, group, neighbour, position;
};

// aggregation: first = value; subtraction: first = query, second = key, weights = the relation.
struct ElementaryArgs {
  int64 images, height, width, out_height, out_width;
  int channels, groups, footprint, stride, dilation, padding;
  int channels_fastest;      // which of the maps' indices neighbouring threads walk along
  int unused;
  Map first, second, out;    // in a gradient of maps, out is that gradient
  Map grad;                  // gradient of the aggregated maps
  Weights weights;           // the relation and its gradient have their place here, too
  const void *scale, *shift; // out = relu(sum * scale + shift), or null
};

// h = relu(table + w1 t); alpha = softmax over j of w2 h; out[c] = sum over j of
// alpha[j][c % groups] value_j[c], then relu(out * scale + shift) if given. By delta:
//   kSubtraction    t = relu(query_i - key_j)
//   kHadamard       t = relu(query_i * key_j + offset)
//   kDot            t = relu(query_i . key_j + offset), one number
//   kConcatenation  h = relu(table + query_i - key_j), with hidden = relation, as the caller has
//                   made the product
// A slot is a displacement inside the map; the neighbours that reflection repeats share one, with
// their number as a factor. With padding zeros slot K2 stands for all neighbours outside.
struct PairwiseArgs {
  int64 images, height, width;
  int relation, hidden, groups, channels;
  int footprint, padding, slots, table_per_pixel;
  int tile_height, tile_width, strips;           // of the tuned kernels
  int table_by_place;        // 1: the table is [height * width + 1][hidden]: by the neighbour's
                             // place, the outside last
  Map query, key, value, out;
  const void *w1, *w1t;      // [hidden][relation], kDot: [hidden][1], else null; its transpose
  const void *w2, *w2t;      // [groups][hidden], its transpose
  const void *table;         // [1 or height * width][K2 + 1][hidden]
  const void *offset;        // kHadamard: [relation]; kDot: [1]; else null
  const void *scale, *shift; // [channels], or null
  void *alpha;               // [pixels][slots][groups], multiplicity included; or null
  unsigned short *signs;     // [pixels][slots][hidden / 16]: bit = h > 0; or null
  Map grad, grad_query, grad_key, grad_value;
  void *logit_grad;          // [pixels][slots][groups]; general kernels
  void *hidden_grad;         // [pixels][slots][hidden]; general kernels
  void *dots;                // [pixels][groups]: sum over j of alpha times its gradient
};

// a = [relu(query_i), relu(key_j * key_scale + key_shift) for every j]; h = relu(b1 + w1 a);
// weight[j] = b2[j] + w2[j] h; out as above. A neighbour outside has key 0 and value 0.
struct PatchwiseArgs {
  int64 images, height, width;
  int relation, hidden, groups, channels;
  int footprint, padding;
  Map query, key, value, out;
  const void *key_scale, *key_shift;   // [K2][relation]
  const void *w1, *w1t;      // [hidden][(1 + K2) * relation]: the query first; its transpose
  const void *b1;            // [hidden]
  const void *w2, *w2t;      // [K2 * groups][hidden]: neighbour by neighbour; its transpose
  const void *b2;            // [K2 * groups]
  const void *scale, *shift; // [channels], or null
  void *h;                   // [pixels][hidden]
  Map grad, grad_query, grad_key, grad_value;
  void *weight_grad;         // [pixels][K2][groups]: weights, then their gradient; general kernels
  void *hidden_grad;         // [pixels][hidden], masked
};

}  // namespace san
