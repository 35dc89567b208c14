// Keys and values on their way between the pool and fp32. Included by attention.inl.
//
//     bf16    16 bits, rounded to nearest even
//     int8    codes = round(x * 127 / max|x|) over the H numbers of one token and kv head, and scale = max|x| / 127
//     fp32    as they are

// Under this the inverse of the scale would overflow; such a head is stored as zeros, as the twin does.
constexpr float kSmallestLargest = 1e-30f;

template <KvType kType>
struct Stored;
template <>
struct Stored<KvType::kFloat32> {
  using Type = float;
  static Floats Read(const float* p) { return Load(p); }
};
template <>
struct Stored<KvType::kBf16> {
  using Type = uint16_t;
  static Floats Read(const uint16_t* p) { return LoadBf16(p); }
};
template <>
struct Stored<KvType::kInt8> {
  using Type = int8_t;
  static Floats Read(const int8_t* p) { return LoadInt8(p); }
};

// The index of position p of row r in a pool's [ring or page, slot] order.
inline int64_t SlotOf(const KvPool& kv, int64_t r, int64_t p) {
  if (kv.is_ring) return static_cast<int64_t>(kv.where[r]) * kv.slots + p % kv.slots;
  return static_cast<int64_t>(kv.where[r * kv.table_width + p / kv.slots]) * kv.slots + p % kv.slots;
}

// Writes the H numbers of one token and head.
inline void WriteHead(KvType type, void* pool, float* scales, int64_t at, const float* x, int64_t H) {
  if (type == KvType::kFloat32) {
    float* to = static_cast<float*>(pool) + at * H;
    for (int64_t h = 0; h < H; h += kLanes) Store(to + h, Load(x + h));
  } else if (type == KvType::kBf16) {
    uint16_t* to = static_cast<uint16_t*>(pool) + at * H;
    for (int64_t h = 0; h < H; h += kLanes) StoreBf16(to + h, Load(x + h));
  } else {
    Floats most = Zero();
    for (int64_t h = 0; h < H; h += kLanes) most = Max(most, Abs(Load(x + h)));
    const float largest = Largest(most);
    const bool any = largest > kSmallestLargest;
    const Floats inverse = Set(any ? 127.0f / largest : 0.0f);
    scales[at] = any ? largest * (1.0f / 127.0f) : 0.0f;
    int8_t* to = static_cast<int8_t*>(pool) + at * H;
    for (int64_t h = 0; h < H; h += kLanes) StoreInt8(to + h, ToInts(Mul(Load(x + h), inverse)));
  }
}

// Stores kv head j of column c of row r.
inline void StoreHead(const AttentionArguments& call, int64_t r, int64_t c, int64_t j) {
  const KvPool& kv = call.kv;
  const int64_t at = SlotOf(kv, r, call.start[r] + c) * call.kv_heads + j;
  const int64_t token = r * call.columns + c, from = j * call.head_dim;
  WriteHead(kv.type, kv.k, kv.k_scale, at, call.k + token * call.k_stride + from, call.head_dim);
  WriteHead(kv.type, kv.v, kv.v_scale, at, call.v + token * call.v_stride + from, call.head_dim);
}

// Rounds the H numbers of one token and head as the pool stores them, into to[H]; room[H] is memory to do it in.
template <KvType kType>
inline void RoundHead(const float* x, int64_t H, float* room, float* to) {
  if (kType == KvType::kFloat32) {
    std::memcpy(to, x, sizeof(float) * H);
    return;
  }
  float scale = 1.0f;
  WriteHead(kType, room, &scale, 0, x, H);
  const auto* stored = reinterpret_cast<const typename Stored<kType>::Type*>(room);
  for (int64_t h = 0; h < H; h += kLanes) {
    const Floats value = Stored<kType>::Read(stored + h);
    Store(to + h, kType == KvType::kInt8 ? Mul(value, Set(scale)) : value);
  }
}

constexpr int64_t kStoreColumns = 16;  // of an item

inline int64_t ChunkItems(const AttentionArguments& call) {
  return call.rows * ((call.columns + kStoreColumns - 1) / kStoreColumns);
}

// Stores the rows that `is_wanted` in a phase of ChunkItems. Of a chunk longer than a ring only the last `slots` tokens
// survive.
template <class F>
inline void StoreRows(const AttentionArguments& call, Phase& phase, F&& is_wanted) {
  const int64_t per_row = (call.columns + kStoreColumns - 1) / kStoreColumns;
  phase.Share([&](int64_t i) {
    const int64_t r = i / per_row, at = i % per_row * kStoreColumns;
    const int64_t first = call.kv.is_ring ? std::max(at, call.count[r] - call.kv.slots) : at;
    const int64_t end = std::min<int64_t>(at + kStoreColumns, is_wanted(r) ? call.count[r] : 0);
    for (int64_t c = first; c < end; ++c)
      for (int64_t j = 0; j < call.kv_heads; ++j) StoreHead(call, r, c, j);
  });
}

// Zeroes what no query computed: columns past the row's count.
inline void ZeroPadding(const AttentionArguments& call, int64_t r) {
  for (int64_t c = std::max<int64_t>(call.count[r], 0); c < call.columns; ++c) {
    float* out = call.out + (r * call.columns + c) * call.out_stride;
    std::memset(out, 0, sizeof(float) * call.heads * call.head_dim);
  }
}
