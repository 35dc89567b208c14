// Attention of one query column: R rows of one token each. Included by attention.inl.
//
// Bound by memory: a token reads every key and value it sees once, for all query heads that share them. 1B in bf16 after
// 8,192 tokens reads 34 MB in its global layers and 12 MB in the local ones: 2.3 ms at 20 GB/s. From L2 a key and its
// value take 54 ns for four query heads of 256 (one thread, Zen 4), of which two threads have 100 at that rate.
//
//     row r, kv head j:  keys  | piece 0 | piece 1 | ... | piece n-1 |     128 keys or more, at most 32 pieces
//     a piece:           blocks of 64 keys: scores -> running maximum -> weights -> out += weights @ values
//
// Threads draw pieces; each leaves (maximum, sum, out) and whoever finishes the last piece of a row and head joins them
// in their order. Where the pieces begin depends on the row's length alone, so the result is the same for any number of
// threads, and for a row alone or among others.
//
// Lanes run along the head. Scores: a tile of kDecodeKeys keys x up to kDecodeHeads query heads in registers, each key
// loaded and widened once for all heads of the tile. Values: kDecodeValues keys at once, so that the out of each head is
// loaded and stored once for all of them.
//
// Prefetch, so that memory is busy in both halves of a block: while a key's score is computed its value and the key 16
// further on, while its value is added the key of the next block. Without: 76 us for 1B's window of 512 keys from memory
// with one thread, with it 53 (AMD EPYC, Zen 4, 8 to 10 GB/s a thread that hour).

#if GEMWORKS_TILE_PANELS >= 2
constexpr int kDecodeKeys = 4, kDecodeHeads = 4, kDecodeValues = 8;
#else
constexpr int kDecodeKeys = 2, kDecodeHeads = 2, kDecodeValues = 4;
#endif

constexpr int64_t kDecodePiece = 2 * kKeyBlock;  // keys of the smallest piece: of two blocks one is prefetched
constexpr int64_t kKeysAhead = 16;

template <int kHeads, KvType kType>
inline void DecodeScores(const float* q, int64_t H, const KeyBlock<kType>& keys, int64_t s, float* scores) {
  Floats acc[kHeads][kDecodeKeys];
#pragma GCC unroll 16
  for (int g = 0; g < kHeads; ++g)
#pragma GCC unroll 16
    for (int i = 0; i < kDecodeKeys; ++i) acc[g][i] = Zero();
  for (int64_t h = 0; h < H; h += kLanes) {
    Floats key[kDecodeKeys];
#pragma GCC unroll 16
    for (int i = 0; i < kDecodeKeys; ++i) key[i] = Stored<kType>::Read(keys.k[s + i] + h);
#pragma GCC unroll 16
    for (int g = 0; g < kHeads; ++g) {
      const Floats query = Load(q + g * H + h);
#pragma GCC unroll 16
      for (int i = 0; i < kDecodeKeys; ++i) acc[g][i] = MulAdd(query, key[i], acc[g][i]);
    }
  }
#pragma GCC unroll 16
  for (int g = 0; g < kHeads; ++g)
#pragma GCC unroll 16
    for (int i = 0; i < kDecodeKeys; ++i) scores[g * kKeyBlock + s + i] = Sum(acc[g][i]);
}

template <int kHeads, KvType kType>
inline void DecodeValues(float* out, int64_t H, const KeyBlock<kType>& keys, int64_t s, const float* weights) {
  for (int64_t h = 0; h < H; h += kLanes) {
    Floats value[kDecodeValues];
#pragma GCC unroll 16
    for (int i = 0; i < kDecodeValues; ++i) value[i] = Stored<kType>::Read(keys.v[s + i] + h);
#pragma GCC unroll 16
    for (int g = 0; g < kHeads; ++g) {
      Floats acc = Load(out + g * H + h);
#pragma GCC unroll 16
      for (int i = 0; i < kDecodeValues; ++i) acc = MulAdd(value[i], Set(weights[g * kKeyBlock + s + i]), acc);
      Store(out + g * H + h, acc);
    }
  }
}

// Calls f with the number of heads, 1 .. kDecodeHeads, as a constant.
template <class F>
inline void WithHeads(int64_t heads, F&& f) {
  if (heads >= kDecodeHeads) return f(std::integral_constant<int, kDecodeHeads>());
  if (heads == 3) return f(std::integral_constant<int, kDecodeHeads < 3 ? kDecodeHeads : 3>());
  if (heads == 2) return f(std::integral_constant<int, 2>());
  f(std::integral_constant<int, 1>());
}

// Asks for the bytes at p + offset, which may be outside of any array: a prefetch never faults.
inline void PrefetchBytes(const void* p, int64_t offset, int64_t bytes) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(p) + offset;
  for (int64_t i = 0; i < bytes; i += 64) Prefetch(reinterpret_cast<const void*>(at + i));
}

// Turns the scores of one head into weights; returns by how much what was summed before shrinks.
inline float DecodeSoftmax(float* scores, int64_t size, float* best, float* total) {
  Floats most = Set(*best);
  for (int64_t s = 0; s < size; s += kLanes) most = Max(most, Load(scores + s));
  const float new_best = Largest(most);
  Floats sum = Zero();
  for (int64_t s = 0; s < size; s += kLanes) {
    const Floats weight = Exp(Sub(Load(scores + s), Set(new_best)));
    Store(scores + s, weight);
    sum = Add(sum, weight);
  }
  alignas(64) float shrink[kLanes];
  Store(shrink, Exp(Set(*best - new_best)));
  *total = *total * shrink[0] + Sum(sum);
  *best = new_best;
  return shrink[0];
}

// Adds a block of keys to a partial of G heads. `scores` is room for [G, kKeyBlock].
template <KvType kType>
inline void DecodeBlock(const float* q, int64_t G, int64_t H, const KeyBlock<kType>& keys, float* scores,
                        const Partial& to) {
  const int64_t row_bytes = H * sizeof(typename Stored<kType>::Type);
  for (int64_t s = 0; s < keys.size; s += kDecodeKeys) {
    for (int i = 0; i < kDecodeKeys; ++i) {
      PrefetchBytes(keys.v[s + i], 0, row_bytes);
      PrefetchBytes(keys.k[s + i], keys.block_bytes / kKeyBlock * kKeysAhead, row_bytes);
    }
    for (int64_t g = 0; g < G; g += kDecodeHeads)
      WithHeads(G - g, [&](auto n) {
        DecodeScores<decltype(n)::value, kType>(q + g * H, H, keys, s, scores + g * kKeyBlock);
      });
  }
  const int64_t padded = (keys.size + kLanes - 1) / kLanes * kLanes;
  for (int64_t g = 0; g < G; ++g) {
    float* mine = scores + g * kKeyBlock;
    if (kType == KvType::kInt8)
      for (int64_t s = 0; s < padded; s += kLanes) Store(mine + s, Mul(Load(mine + s), Load(keys.k_scale + s)));
    for (int64_t s = keys.size; s < padded; ++s) mine[s] = kMasked;
    const float shrink = DecodeSoftmax(mine, padded, to.best + g, to.total + g);
    if (kType == KvType::kInt8)
      for (int64_t s = 0; s < padded; s += kLanes) Store(mine + s, Mul(Load(mine + s), Load(keys.v_scale + s)));
    if (shrink != 1.0f)
      for (int64_t h = 0; h < H; h += kLanes) Store(to.out + g * H + h, Mul(Load(to.out + g * H + h), Set(shrink)));
  }
  for (int64_t s = 0; s < keys.size; s += kDecodeValues) {
    // The next block's key lies one block on where slots or pages follow one another; else this is for nothing.
    for (int i = 0; i < kDecodeValues; ++i) PrefetchBytes(keys.k[s + i], keys.block_bytes, row_bytes);
    for (int64_t g = 0; g < G; g += kDecodeHeads)
      WithHeads(G - g, [&](auto n) {
        DecodeValues<decltype(n)::value, kType>(to.out + g * H, H, keys, s, scores + g * kKeyBlock);
      });
  }
}

// The pieces of one row's keys [begin, end) in the pool.
struct DecodeRow {
  int64_t begin, end, length, pieces;
  int64_t first_item;  // items are (row, kv head, piece) in that order
};

inline DecodeRow MakeDecodeRow(const AttentionArguments& call, int64_t r, int64_t first_item) {
  DecodeRow row;
  if (call.count[r] <= 0) return {0, 0, kKeyBlock, 0, first_item};
  const int64_t start = call.start[r];
  row.begin = call.window > 0 ? std::max<int64_t>(0, start - call.window + 1) : 0;
  row.end = call.kv.is_ring ? start : start + 1;  // a ring does not hold the token itself yet
  const int64_t a_piece = (row.end - row.begin + kPieces - 1) / kPieces;
  row.length = std::max<int64_t>(1, (a_piece + kDecodePiece - 1) / kDecodePiece) * kDecodePiece;
  row.pieces = std::max<int64_t>(1, (row.end - row.begin + row.length - 1) / row.length);
  row.first_item = first_item;
  return row;
}

// Computes one piece of kv head j of row r.
template <KvType kType>
inline void DecodePiece(const AttentionArguments& call, const DecodeRow& row, int64_t r, int64_t j, int64_t piece,
                        float* scratch, const Partial& to) {
  const int64_t H = call.head_dim, G = call.heads / call.kv_heads;
  float* q = scratch;
  float* scores = scratch + G * H;
  const float* from = call.q + r * call.q_stride + j * G * H;
  for (int64_t h = 0; h < G * H; h += kLanes) Store(q + h, Mul(Load(from + h), Set(call.scale)));
  for (int64_t g = 0; g < G; ++g) to.best[g] = kNoKeyYet, to.total[g] = 0.0f;
  for (int64_t h = 0; h < G * H; h += kLanes) Store(to.out + h, Zero());
  const bool is_last = piece == row.pieces - 1;
  // Only the last piece reads the token's own slot in a page, and no piece reads the slot it takes in a ring: that held
  // the position `slots` before it.
  if (is_last) StoreHead(call, r, 0, j);
  const int64_t begin = row.begin + piece * row.length, end = std::min(row.end, begin + row.length);
  KeyBlock<kType> keys;
  for (int64_t p = begin; p < end; p += kKeyBlock) {
    AddressKeys(call, r, j, p, std::min(kKeyBlock, end - p), keys);
    DecodeBlock(q, G, H, keys, scores, to);
  }
  if (call.kv.is_ring && is_last) {  // the token's own key, as it came
    KeyBlock<KvType::kFloat32> own;
    AddressOne(call.k + r * call.k_stride + j * H, call.v + r * call.v_stride + j * H, own);
    DecodeBlock(q, G, H, own, scores, to);
  }
}

template <KvType kType>
inline void AttendColumn(const AttentionArguments& call, Pool& pool) {
  const int64_t H = call.head_dim, K = call.kv_heads, G = call.heads / K;
  std::vector<DecodeRow> rows;
  rows.reserve(call.rows);
  int64_t items = 0;
  for (int64_t r = 0; r < call.rows; ++r) {
    rows.push_back(MakeDecodeRow(call, r, items));
    items += rows.back().pieces * K;
  }
  const int64_t size = PartialSize(G, H);
  thread_local Scratch shared;
  float* partials = shared.Get(items * size);
  Countdowns left(call.rows * K, [&](int64_t i) { return rows[i / K].pieces; });
  Phase attend(items);
  pool.Run([&](int) {
    thread_local Scratch own;
    float* scratch = own.Get(G * (H + kKeyBlock));
    int64_t r = 0;
    attend.Share([&](int64_t item) {
      while (item >= rows[r].first_item + rows[r].pieces * K) ++r;
      const int64_t j = (item - rows[r].first_item) / rows[r].pieces;
      const int64_t first = rows[r].first_item + j * rows[r].pieces;
      DecodePiece<kType>(call, rows[r], r, j, item - first, scratch, PartialAt(partials + item * size, G));
      if (!left.IsLast(r * K + j)) return;
      for (int64_t g = 0; g < G; ++g)
        Join(partials + first * size, rows[r].pieces, G, H, g, call.out + r * call.out_stride + (j * G + g) * H);
    });
  });
}
