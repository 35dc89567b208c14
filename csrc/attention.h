// What an attention kernel is told: one call is one layer of one step (gemworks/ops/kv.py has the vocabulary).
//
// R rows of C columns; of a row's columns the first count[r] are real and hold positions start[r], start[r] + 1, ...
// Queries, keys and values are fp32 and dense over heads; a token's heads may lie anywhere (the strides), so that one
// buffer can hold q, k and v side by side. The chunk's keys and values are stored in the same call.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace gemworks {

enum class KvType : int32_t { kFloat32, kBf16, kInt8 };

// Where keys and values live. Slot s of ring or page n is element n * slots + s; each has [kv_heads, head_dim] numbers.
struct KvPool {
  KvType type;
  void* k;
  void* v;
  float* k_scale;  // int8 only: [rings or pages, slots, kv_heads], value = code * scale
  float* v_scale;
  int64_t slots;            // of a ring, or of a page
  bool is_ring;             // position p is slot p % slots of where[r]; else slot p % slots of where[r][p / slots]
  const int32_t* where;     // rings: [R]; pages: [R, table_width]
  int64_t table_width;
};

struct AttentionArguments {
  int64_t rows, columns, heads, kv_heads, head_dim;  // head_dim % 16 == 0, heads % kv_heads == 0, at most 16 a group
  float scale;                                       // of the scores
  const float* q;
  const float* k;
  const float* v;
  float* out;  // columns past a row's count become 0
  int64_t q_stride, k_stride, v_stride, out_stride;  // floats from a token to the next
  const int32_t* start;
  const int32_t* count;
  int64_t window;  // a query sees positions [p - window + 1, p]; 0: [0, p]
  KvPool kv;
};

}  // namespace gemworks
