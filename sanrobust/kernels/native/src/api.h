// The plain C interface of the CPU kernels. Every function takes a pointer to one struct of
// arguments and returns 0, or a Status. Tensors are dense; "rows" are pixels in the order
// (image, y, x), channels last. K2 = footprint * footprint. Structs are mirrored by ctypes.
#pragma once
#include <cstdint>
#include <type_traits>

enum Status : int { kOk = 0, kUnsupported = 1, kOutOfMemory = 2 };
enum Padding : int32_t { kReflect = 0, kZeros = 1 };
enum Element : int32_t { kFloat = 0, kDouble = 1 };
enum Delta : int32_t { kSubtraction = 0, kHadamard = 1, kDot = 2, kConcatenation = 3 };
enum Mapping : int32_t { kLRL = 0, kL = 1, kLRLRL = 2 };

// alpha = softmax over j of the logits; y[c] = sum over j of alpha[j][c % groups] value_j[c]. With
// scale and shift the output is relu(y * scale + shift), else y. Normalisations are folded in by
// the caller. Logits by mapping:
//   kLRL    w2 relu(first)
//   kL      first, with hidden = groups
//   kLRLRL  w2 relu(b_mid + w_mid relu(first))
// where first = table + w1 t, and by delta:
//   kSubtraction    t = relu(query_i - key_j)
//   kHadamard       t = relu(query_i * key_j + offset)
//   kDot            t = relu(query_i . key_j + offset), one number
//   kConcatenation  first = table + query_i - key_j, of the first `hidden` channels of both: the
//                   caller has made the product, as ReLU acts on each half by itself
struct PairwiseArgs {
  int64_t images, height, width;
  int32_t relation, hidden, groups, channels;
  int32_t footprint, padding, element, threads;
  int32_t table_per_pixel;   // 0: one table for all pixels; 1: one per pixel of the map
  int32_t table_by_place;    // 1: the table has a row for each pixel that is a neighbour instead
  int32_t delta, mapping;
  const void *qkv;           // [pixels][2 * relation + channels]: query, key, value
  const void *w1;            // [hidden][relation]; kDot: [hidden][1]; kConcatenation: null
  const void *w1t;           // its transpose
  const void *w2;            // [groups][hidden]
  const void *w2t;           // [hidden][groups]
  const void *table;         // [1 or height * width][K2 + 1][hidden]: the hidden layer's initial
                             // value by displacement (row by row) of the neighbour inside the
                             // map; entry K2 is that of a neighbour outside it (padding zeros).
                             // By place: [height * width + 1][hidden], the outside last
  const void *offset;        // kHadamard: [relation]; kDot: [1]; else null
  const void *w_mid;         // kLRLRL: [hidden][hidden]; else null
  const void *w_mid_t;       // its transpose
  const void *b_mid;         // kLRLRL: [hidden]; else null
  const void *scale, *shift; // [channels], or null
  void *y;                   // [pixels][channels] before scale and shift, or null
  void *out;                 // [pixels][channels]; null only where y alone is wanted
  void *alpha;               // [pixels][K2][groups] kept for backward, or null (tuned shapes)
  uint16_t *signs;           // kept for backward, or null. [pixels]: [K2][ceil(hidden / 16)] for
                             // each hidden layer, then, with kDot, [K2] of t
  const void *grad;          // backward: gradient of out (of y without scale) [pixels][channels]
  void *grad_qkv;            // backward: [pixels][2 * relation + channels]
  void *grad_w1t;            // backward, or null: the gradients of w1t, w2t and of one table for all
  void *grad_w2t;            // pixels, of kLRL by kSubtraction
  void *grad_table;
  double *moments;           // moments_forward: [2][hidden], the mean and variance of first
  const void *slope;         // moments_backward: [3][hidden], the gradient of each pair's first is
                             // slope[0] + slope[1] * (first - slope[2])
};

// a = [relu(query_i), relu(key_j * key_scale + key_shift) for every j]; h = relu(b1 + w1 a);
// weight[j] = b2[j] + w2[j] h; y[c] = sum over j of weight[j][c % groups] value_j[c].
// A neighbour outside the map (padding zeros) has key 0 and value 0. Without w1, h is given before its
// relu, query and key are not read, and have the gradient 0. The other half alone: with hidden_alone
// forward makes h before its relu and nothing else, and backward is given its gradient; values are
// not read, and have the gradient 0; where it adds, what grad_qkv has is kept.
struct PatchwiseArgs {
  int64_t images, height, width;
  int32_t relation, hidden, groups, channels;
  int32_t footprint, padding, element, threads;
  int32_t hidden_alone, adds;
  const void *qkv;           // [pixels][2 * relation + channels]
  const void *key_scale;     // [K2][relation]
  const void *key_shift;     // [K2][relation]
  const void *w1;            // [hidden][(1 + K2) * relation]: the query, then neighbour by neighbour;
                             // or null, and key_scale, key_shift, w1t, b1 too
  const void *w1t;           // its transpose
  const void *b1;            // [hidden]
  const void *w2;            // [K2 * groups][hidden]: neighbour by neighbour
  const void *w2t;           // its transpose
  const void *b2;            // [K2 * groups]
  const void *scale, *shift; // as above
  void *y, *out;             // as above, either or both may be null; backward with scale reads out
  void *h;                   // [pixels][hidden] kept for backward, or null; without w1 given to both
  const void *grad;
  void *grad_qkv;
  void *grad_h;              // backward without w1: the gradient of h
  void *grad_w1t;            // backward of hidden_alone, or null: gradients of the parameters
  void *grad_key_scale, *grad_key_shift;
  void *grad_w2t, *grad_b2;  // backward without w1, or null
};

// product[j] = query_i . key_j, or of a clique product[j][k] = query_j . key_k for all neighbours j
// and k of i; 0 for those outside the map (padding zeros).
struct DotsArgs {
  int64_t images, height, width;
  int32_t relation, beside;  // channels of query and of key; what follows them in each row
  int32_t footprint, padding, threads, clique;
  const float *qkv;          // [pixels][2 * relation + beside]
  float *out;                // [pixels][K2], of a clique [pixels][K2][K2]
  const float *grad;         // backward: gradient of out
  float *grad_qkv;           // backward: query and key are added to
};

// Scalar attention. logit[j][g] = the sum over channels c with c % groups = g of query_i[c] key_j[c]
// (where there are keys), plus, with embeddings, of query_i[c] r[c]: r is rows[.][c] of j's row
// offset for the first half of the channels and columns[.][c] of its column offset for the others.
// alpha = softmax over j; y[c] = sum over j of alpha[j][c % groups] value_j[c]. A neighbour outside
// the map (padding zeros) has key 0 and value 0. Output as in PairwiseArgs.
struct LocalArgs {
  int64_t images, height, width;
  int32_t relation, keys;    // channels of queries; of keys: as many, or 0
  int32_t groups, channels;
  int32_t footprint, padding, element, threads;
  const void *qkv;           // [pixels][relation + keys + channels]
  const void *embedding;     // rows, columns: [2][footprint][relation / 2]; or null
  const void *scale, *shift; // [channels], or null
  void *out;                 // [pixels][channels]; backward with scale reads it
  const void *grad;          // backward: gradient of out [pixels][channels]
  void *grad_qkv;            // backward: [pixels][relation + keys + channels]
  void *grad_offset;         // backward, or null: gradient of the sum of logits of each row of
                             // neighbours, then of each column [pixels][2][footprint][groups]
};

// Elementary operators on planar maps [images][channels][height][width] with stride, dilation;
// positions = out_height * out_width, out = (side - 1) / stride + 1. Pointers by operator below.
struct ElementaryArgs {
  int64_t images, height, width;
  int32_t channels, groups;
  int32_t footprint, stride, dilation, padding, element, threads;
  const void *first;         // value | query
  const void *second;        // weight [images][groups][K2][positions] | key
  const void *grad;          // gradient of the output
  void *out;                 // forward: the output
  void *grad_first;          // backward, or null
  void *grad_second;         // backward, or null
};

// out (+)= epilogue(prologue(a) @ b). Prologue: with in_scale, a -> relu(a * in_scale + in_shift),
// then with pool_height a maximum over 2x2 pixels. Epilogue: + bias; or, with out_signs,
// product * out_scale where the bit is set and 0 elsewhere. Sums run over `inner` in one fixed
// order, so no number depends on rows, threads or how the work is cut.
struct GemmArgs {
  int64_t rows;              // of the product
  int32_t inner, columns, threads, accumulate;
  const float *a;            // [rows][inner]; pooled: [images][pool_height][pool_width][inner]
  const float *packed;       // made by sanrobust_pack
  const float *bias;         // [columns] or null
  float *out;                // [rows][columns]
  const float *in_scale, *in_shift;  // [inner] or null
  uint16_t *in_signs;        // [rows][ceil(inner / 16)]: bit = pre-activation > 0; or null
  int64_t pool_height, pool_width;   // 0: no pooling; otherwise the sides before it
  uint8_t *pool_codes;       // [rows][inner]: which of the four won, 4: none was positive; or null
  const float *out_scale;    // [columns], with out_signs
  const uint16_t *out_signs; // [rows][ceil(columns / 16)] or null
  int64_t beside;            // floats that follow each row of a, and of out; out may be a itself
                             // where columns = inner and nothing is pooled
};

struct PackArgs { int32_t inner, columns; const float *b; int64_t row_stride, column_stride; float *packed; };

// pixels [images][3][height][width] -> 1x1 convolution (weight [3][channels], bias), relu, and
// with pooled a maximum over 2x2, channels last.
struct StemArgs {
  int64_t images, height, width;
  int32_t channels, pooled, threads, unused;
  const float *pixels, *weight, *bias;
  float *out;                // [images][height / 2][width / 2][channels] when pooled
  uint8_t *codes;            // same shape: winner 0..3, 4: none positive; not pooled: 0 or 4; or null
  const float *grad;         // backward: shape of out
  float *grad_pixels;        // backward: shape of pixels
};

// The same in training, pooled and planar: y = the maximum over 2x2 of relu(weight pixels + bias), of
// whole squares, and the gradients of its parameters.
struct LearnedStemArgs {
  int64_t images, height, width;
  int32_t channels, threads;
  const float *pixels;       // [images][3][height][width]
  const float *weight, *bias; // [channels][3], [channels]
  float *y;                  // [images][channels][height / 2][width / 2]
  uint8_t *codes;            // as y: winner 0..3, 4: none positive
  const float *grad;         // backward: gradient of y
  float *grad_weight, *grad_bias;
};

// Undo of affine, relu, 2x2 maximum: out[winner] = grad * scale, 0 elsewhere.
struct UnpoolArgs { int64_t images, height, width; int32_t channels, threads; const float *grad; const uint8_t *codes; const float *scale; float *out; };

// pooled[image][c] = mean over pixels of relu(x * scale + shift), and its gradient.
struct HeadArgs {
  int64_t images, pixels;    // pixels per image
  int32_t channels, threads;
  const float *x, *scale, *shift;
  float *pooled;             // [images][channels]
  uint16_t *signs;           // [images * pixels][ceil(channels / 16)] or null
  const float *grad;         // backward: [images][channels]
  float *grad_x;             // backward: [images * pixels][channels]
};

// out = [x * scale[0] + shift[0] | x * scale[1] + shift[1] | x * scale[2] + shift[2]], and its
// gradient.
struct RepeatArgs {
  int64_t pixels;
  int32_t channels, threads;
  const float *x;            // [pixels][channels]
  const float *scale, *shift; // [3][channels]
  float *out;                // [pixels][3][channels]
  const float *grad;         // backward: [pixels][3][channels]
  float *grad_x;             // backward: [pixels][channels]
};

// y = relu((x - mean) / sqrt(variance + eps) * weight + bias) by the statistics of each channel over
// images and pixels, and its gradients. Planar: [images][channels][pixels]. With a pool_width, that of
// the maps, y is the maximum over 2x2 pixels, of whole squares alone.
struct NormArgs {
  int64_t images, pixels;
  int32_t channels, element, threads, pool_width;
  double eps;
  const void *x;
  const void *weight, *bias; // [channels]
  double *stats;             // [2][channels]: mean, variance; forward writes them
  void *y;
  const void *grad;          // backward: gradient of y
  void *grad_x;
  void *grad_weight, *grad_bias;  // [channels]
  uint8_t *codes;            // pooled, as y: which of the four won, 4: none was positive
};

// Whether backward, with scale, reads off `out` where the relu was open, and not off `y`.
template <class Args> constexpr bool keeps_out = !std::is_same_v<Args, PairwiseArgs>;

#pragma GCC visibility push(default)
extern "C" {
int sanrobust_level();       // 0: generic, 1: AVX2 and FMA, 2: AVX-512 (F, BW, DQ, VL): of this CPU
int sanrobust_lanes();       // floats per vector in this build
int sanrobust_pairwise_tuned(const PairwiseArgs *);    // 1: the tuned kernels take this shape
int sanrobust_patchwise_tuned(const PatchwiseArgs *);
int sanrobust_pairwise_forward(const PairwiseArgs *);
int sanrobust_pairwise_backward(const PairwiseArgs *); // tuned: y, alpha, signs of the forward pass
int sanrobust_moments_forward(const PairwiseArgs *);   // of first over all pairs: reads neither
int sanrobust_moments_backward(const PairwiseArgs *);  // values nor w2
int sanrobust_patchwise_forward(const PatchwiseArgs *);
int sanrobust_patchwise_backward(const PatchwiseArgs *);   // tuned: h of the forward pass
int sanrobust_local_tuned(const LocalArgs *);
int sanrobust_local_forward(const LocalArgs *);
int sanrobust_local_backward(const LocalArgs *);
int sanrobust_dots_forward(const DotsArgs *);
int sanrobust_dots_backward(const DotsArgs *);
int sanrobust_aggregation_forward(const ElementaryArgs *);
int sanrobust_aggregation_backward(const ElementaryArgs *);
int sanrobust_subtraction_forward(const ElementaryArgs *);
int sanrobust_subtraction_backward(const ElementaryArgs *);
int64_t sanrobust_packed_size(int32_t inner, int32_t columns);   // floats
int sanrobust_pack(const PackArgs *);
int sanrobust_gemm(const GemmArgs *);
int sanrobust_stem_forward(const StemArgs *);
int sanrobust_stem_backward(const StemArgs *);
int sanrobust_learned_stem_forward(const LearnedStemArgs *);
int sanrobust_learned_stem_backward(const LearnedStemArgs *);
int sanrobust_unpool(const UnpoolArgs *);
int sanrobust_head_forward(const HeadArgs *);
int sanrobust_head_backward(const HeadArgs *);
int sanrobust_repeat_forward(const RepeatArgs *);
int sanrobust_repeat_backward(const RepeatArgs *);
int sanrobust_norm_forward(const NormArgs *);
int sanrobust_norm_backward(const NormArgs *);
double sanrobust_probe(int threads, double seconds);   // GFLOP/s of multiply-adds in registers
}
#pragma GCC visibility pop
