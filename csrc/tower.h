// What the kernels of the vision tower are given (csrc/tower.inl, csrc/attend_all*.inl). Letters as in
// gemworks/model/siglip.py: P patches, D model width, F feed-forward width, N heads, H head width.
#pragma once

#include <cstdint>

namespace gemworks {

struct Matrix;

// out = softmax(scale * q k^T) v for every head, nothing masked. Heads are apart: [N, P, H], all four.
struct AttendAllArguments {
  int64_t heads, patches, head_dim;
  float scale;
  bool exact;  // fp32 products, or int8 ones
  const float *q, *k, *v;
  float* out;
};

// x W^T + bias.
struct Biased {
  const Matrix* weight;  // Format::kInt8
  const float* bias;     // [rows]
};

// LayerNorm.
struct Normed {
  const float *weight, *bias;  // [D]
};

// One layer: x + o(attention(norm(x))), then + down(gelu(up(norm(x)))). D and F are multiples of 32, H of 4.
struct TowerArguments {
  int64_t patches, width, hidden, heads;
  float eps;
  const float* x;  // [P, D]
  Normed attn_norm, ffw_norm;
  Biased q, k, v, o, up, down;
  float* heads_room;  // [3, P, D]: q, k, v as [N, P, H]; left over afterwards
  float* out;         // [P, D]
};

}  // namespace gemworks
