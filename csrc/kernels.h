// The kernels, as one table of functions per instruction set. kernels_<isa>.cc compiles the .inl files for its set.
//
// A kernel is given its arguments, the pool and a workspace of the size that its _workspace function asks for, 64-byte
// aligned. All floats are fp32 and row-major; letters as in gemworks/model: T tokens, D model width, E = N * H query
// width, F feed-forward width, V vocabulary rows.
#pragma once

#include <cstdint>

#include "attention.h"
#include "tower.h"

namespace gemworks {

class Pool;

enum class Format : int32_t { kInt4B32, kInt4, kInt8B32, kInt8, kSfp8, kBf16 };  // the order of ops/weight.py FORMATS

// A packed matrix (ops/layout.py): rows outputs, cols inputs.
struct Matrix {
  const uint8_t* data;
  Format format;
  int64_t rows, cols;
};

// y[T, rows] = x[T, cols] W^T.
struct LinearArguments {
  int64_t tokens;
  const float* x;
  Matrix weight;
  float* y;
};

// The same for a row-major bf16 matrix and 1 to 4 tokens; cols a multiple of 16. Workspace: tokens * cols floats.
struct RowMajorArguments {
  int64_t tokens, rows, cols;
  const float* x;
  const uint16_t* weight;
  float* y;
};

// q, k, v of normed rows; heads of q and k normed and turned (ops.qkv).
struct QkvArguments {
  int64_t tokens, head_dim;
  float eps;
  const float *x, *gain, *q_gain, *k_gain;  // [T, D], [D], [H], [H]
  const float *cos, *sin;                   // [T, H / 2]
  Matrix q_weight, k_weight, v_weight;
  float *q, *k, *v;
};

// The rest of a layer: x + post_norm(o attn), then + post_norm(down(gelu(gate h) * (up h))) (ops.block_tail).
struct TailArguments {
  int64_t tokens;
  float eps;
  const float *x, *attn;                               // [T, D], [T, E]
  const float *attn_gain, *ffw_gain, *ffw_post_gain;   // [D] each: after attention, before and after feed-forward
  Matrix o, gate, up, down;
  float* out;  // [T, D]
};

// The `top` largest of the first `vocab` logits of every row, largest first, ties by id; and ln sum e^logit, or zeros
// where it is not wanted.
struct HeadArguments {
  bool with_total;
  int64_t tokens, vocab, top;
  const float* x;
  Matrix weight;
  float* values;      // [T, top]
  int32_t* ids;       // [T, top]
  float* log_total;   // [T]
};

// out[t] = row ids[t] of the table, times scale. Ids are clipped.
struct EmbedArguments {
  int64_t tokens;
  const int32_t* ids;
  Matrix weight;
  float scale;
  float* out;
};

// out = x * (1 + gain) / rms(x) over rows of `cols` floats, a multiple of 16 (ops.rms_norm).
struct NormArguments {
  int64_t tokens, cols;
  float eps;
  const float *x, *gain;
  float* out;
};

struct Kernels {
  const char* isa;
  void (*linear)(const LinearArguments&, Pool&, uint8_t*);
  int64_t (*linear_workspace)(const LinearArguments&);
  void (*row_major)(const RowMajorArguments&, Pool&, uint8_t*);
  void (*qkv)(const QkvArguments&, Pool&, uint8_t*);
  int64_t (*qkv_workspace)(const QkvArguments&);
  void (*tail)(const TailArguments&, Pool&, uint8_t*);
  int64_t (*tail_workspace)(const TailArguments&);
  void (*head)(const HeadArguments&, Pool&, uint8_t*);
  int64_t (*head_workspace)(const HeadArguments&, int threads);
  void (*embed)(const EmbedArguments&, Pool&);
  void (*norm)(const NormArguments&, Pool&);
  void (*attend)(const AttentionArguments&, Pool&);
  void (*attend_all)(const AttendAllArguments&, Pool&, uint8_t*);
  int64_t (*attend_all_workspace)(const AttendAllArguments&);
  void (*tower_layer)(const TowerArguments&, Pool&, uint8_t*);
  int64_t (*tower_workspace)(const TowerArguments&);
};

// The tables this library was built with; null where the compiler or the processor family has none.
const Kernels* Avx512Bf16Kernels();
const Kernels* Avx512Kernels();
const Kernels* Avx2Kernels();
const Kernels* NeonKernels();

static constexpr int64_t Aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace gemworks
