// Attention over rings and pages. Included by kernels_<isa>.cc inside its namespace, after simd_<isa>.h and pool.h.
//
//     ring     queries see the ring as it was and the chunk's own keys; then the chunk is stored. Its first query still
//              needs the slots that its last tokens take.
//     pages    the chunk is stored first and read back from the pages.
//
// That order is gemworks/ops/xla/attention.py's, the specification. Either way a key is rounded as the pool stores it
// before anybody reads it, so a result does not depend on what came in the same chunk. Rows of one token, and drafts of
// up to kDraftColumns, go to attention_decode.inl, chunks to attention_prefill.inl. All sums are fp32; where the set has
// products of bf16 pairs, chunks on bf16 pools round queries and weights to bf16 (attention_bf16.inl).

constexpr int64_t kKeyBlock = 64;  // keys whose scores are computed before their values are added
constexpr int64_t kPieces = 32;    // parts of a row's keys that threads may share, at most

// Memory that a thread keeps from call to call: zeroed when it grows, 64-byte aligned. Here and not in
// attention.h: the linker keeps one copy of an inline member, perhaps the one compiled for AVX-512.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(memory_); }

  // At least `count` floats. What they hold is left over from the last call.
  float* Get(int64_t count) {
    if (count > size_) {
      std::free(memory_);
      size_ = (count + 15) / 16 * 16;
      memory_ = static_cast<float*>(std::aligned_alloc(64, size_ * sizeof(float)));
      if (memory_ == nullptr) std::abort();
      for (int64_t i = 0; i < size_; ++i) memory_[i] = 0.0f;
    }
    return memory_;
  }

 private:
  float* memory_ = nullptr;
  int64_t size_ = 0;
};

// Columns of a call whose rows take the way of decode, token by token: so a draft of a few tokens is checked with the very
// bits that decode would compute one after another.
constexpr int64_t kDraftColumns = 8;

// Whether the tokens of row r take the way of decode. All of them are stored before any attends, so a ring that has
// wrapped needs a slot to spare for each but the first.
inline bool IsDecoded(const AttentionArguments& call, int64_t r) {
  const int64_t count = call.count[r];
  if (count <= 1) return count == 1;
  if (call.columns > kDraftColumns) return false;
  return !call.kv.is_ring || call.start[r] + count <= call.kv.slots || call.kv.slots >= call.window + count - 1;
}

inline bool IsChunk(const AttentionArguments& call, int64_t r) { return call.count[r] > 1 && !IsDecoded(call, r); }

#include "softmax.inl"
// After softmax.inl; before the kernels that read with them.
#include "attention_store.inl"

// One block of keys of one row and kv head, by address, padded to whole vectors with the last one.
template <KvType kType>
struct KeyBlock {
  using Type = typename Stored<kType>::Type;
  const Type* k[kKeyBlock];
  const Type* v[kKeyBlock];
  float k_scale[kKeyBlock], v_scale[kKeyBlock];  // int8 only
  int64_t size;
};

template <KvType kType>
inline void PadKeys(KeyBlock<kType>& to) {
  const int64_t last = to.size - 1;
  for (int64_t s = to.size; s % kLanes != 0; ++s) {
    to.k[s] = to.k[last], to.v[s] = to.v[last];
    if (kType == KvType::kInt8) to.k_scale[s] = to.v_scale[s] = 0.0f;
  }
}

// Positions [p, p + n) of row r in the pool, kv head j; n <= kKeyBlock.
template <KvType kType>
inline void AddressKeys(const AttentionArguments& call, int64_t r, int64_t j, int64_t p, int64_t n,
                        KeyBlock<kType>& to) {
  using Type = typename Stored<kType>::Type;
  const KvPool& kv = call.kv;
  const int64_t K = call.kv_heads, H = call.head_dim;
  for (int64_t s = 0; s < n;) {
    const int64_t run = std::min(n - s, kv.slots - (p + s) % kv.slots);
    int64_t at = SlotOf(kv, r, p + s) * K + j;
    for (const int64_t end = s + run; s < end; ++s, at += K) {
      to.k[s] = static_cast<const Type*>(kv.k) + at * H;
      to.v[s] = static_cast<const Type*>(kv.v) + at * H;
      if (kType == KvType::kInt8) to.k_scale[s] = kv.k_scale[at], to.v_scale[s] = kv.v_scale[at];
    }
  }
  to.size = n;
  PadKeys(to);
}

// What a piece of keys leaves for its queries: the largest score, the sum of weights, and the weighted sum of values [H].
struct Partial {
  float* best;
  float* total;
  float* out;
};

inline int64_t PartialSize(int64_t queries, int64_t H) { return queries * (H + 2); }
inline Partial PartialAt(float* at, int64_t queries) { return {at, at + queries, at + 2 * queries}; }

// Joins the pieces of query i, which lie one after another, in their order, into out[H].
inline void Join(float* pieces, int64_t num_pieces, int64_t queries, int64_t H, int64_t i, float* out) {
  const int64_t size = PartialSize(queries, H);
  alignas(64) float weight[kPieces];
  float best = kNoKeyYet, total = 0.0f;
  for (int64_t p = 0; p < kPieces; ++p) {
    weight[p] = p < num_pieces ? PartialAt(pieces + p * size, queries).best[i] : kMasked;
    best = weight[p] > best ? weight[p] : best;
  }
  for (int64_t p = 0; p < kPieces; p += kLanes) Store(weight + p, Exp(Sub(Load(weight + p), Set(best))));
  for (int64_t p = 0; p < num_pieces; ++p) total += weight[p] * PartialAt(pieces + p * size, queries).total[i];
  const Floats inverse = Set(1.0f / total);
  for (int64_t h = 0; h < H; h += kLanes) {
    Floats sum = Zero();
    for (int64_t p = 0; p < num_pieces; ++p) {
      const float* from = PartialAt(pieces + p * size, queries).out + i * H;
      sum = MulAdd(Set(weight[p]), Load(from + h), sum);
    }
    Store(out + h, Mul(sum, inverse));
  }
}

// Counts down to the last piece of each group; the thread that finishes it sees what the others wrote.
class Countdowns {
 public:
  template <class F>
  Countdowns(int64_t groups, F&& pieces) : left_(new std::atomic<int64_t>[groups]) {
    for (int64_t i = 0; i < groups; ++i) left_[i].store(pieces(i), std::memory_order_relaxed);
  }
  bool IsLast(int64_t group) { return left_[group].fetch_sub(1, std::memory_order_acq_rel) == 1; }

 private:
  std::unique_ptr<std::atomic<int64_t>[]> left_;
};

#include "attention_decode.inl"
#include "attention_prefill.inl"

template <KvType kType>
inline void AttendAs(const AttentionArguments& call, Pool& pool) {
  for (int64_t r = 0; r < call.rows; ++r) ZeroPadding(call, r);
  bool columns = false, chunks = false;
  for (int64_t r = 0; r < call.rows; ++r) columns |= IsDecoded(call, r), chunks |= IsChunk(call, r);
  if (columns) AttendColumn<kType>(call, pool);
  if (chunks) AttendChunk<kType>(call, pool);
}

void Attend(const AttentionArguments& call, Pool& pool) {
  switch (call.kv.type) {
    case KvType::kFloat32: return AttendAs<KvType::kFloat32>(call, pool);
    case KvType::kBf16: return AttendAs<KvType::kBf16>(call, pool);
    case KvType::kInt8: return AttendAs<KvType::kInt8>(call, pool);
  }
}
