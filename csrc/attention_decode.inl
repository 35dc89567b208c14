// Attention of one token after another: rows of a call that have one, and drafts, whose tokens are each a text of its own
// here (IsDecoded). Included by attention.inl.
//
// Bound by memory: a token reads every key and value it sees once, for all query heads that share them. 1B in bf16 after
// 8,192 tokens reads 34 MB in its global layers and 12 MB in the local ones. From L2 a key and its value take 55 ns for
// four query heads of 256 (one thread, Zen 4), from memory 94; two threads on one sequence 110, of which 67 are the
// memory's at 30 GB/s.
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
// Prefetch, so that memory is busy all the time: while the scores of a block are computed the keys of the next one are
// brought into the second cache, while its values are added the next one's values; after a piece's last block comes the
// first of the piece that this thread does next. 8,192 keys of one kv head with four query heads, two threads: 575 ->
// 450 us; 4B's four kv heads with two each 3,040 -> 1,850 (AMD EPYC 9004). Without 890 and 2,800; into the first cache,
// which a block's keys alone fill, 760 and 2,830.

#if GEMWORKS_TILE_PANELS >= 2
constexpr int kDecodeKeys = 4, kDecodeHeads = 4, kDecodeValues = 8;
#else
constexpr int kDecodeKeys = 2, kDecodeHeads = 2, kDecodeValues = 4;
#endif

constexpr int64_t kDecodePiece = 2 * kKeyBlock;  // keys of the smallest piece: of two blocks one is prefetched

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

// Asks for the keys or values `rows` of the next block, `size` of them: the share that falls to keys [s, s + n) of the
// `now` at hand.
template <class T>
inline __attribute__((always_inline)) void PrefetchRows(const T* const* rows, int64_t size, int64_t s, int64_t n,
                                                        int64_t now, int64_t H) {
  const int64_t bytes = H * static_cast<int64_t>(sizeof(T)), each = (size + now - 1) / now;
  for (int64_t i = s * each, end = std::min((s + n) * each, size); i < end; ++i) {
    for (int64_t at = 0; at < bytes; at += 64) PrefetchL2(reinterpret_cast<const uint8_t*>(rows[i]) + at);
  }
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

// Adds a block of keys to a partial of G heads. `next` is read after it, and may be empty; `scores` is room for
// [G, kKeyBlock].
template <KvType kType>
inline void DecodeBlock(const float* q, int64_t G, int64_t H, const KeyBlock<kType>& keys, const KeyBlock<kType>& next,
                        float* scores, const Partial& to) {
  for (int64_t s = 0; s < keys.size; s += kDecodeKeys) {
    PrefetchRows(next.k, next.size, s, kDecodeKeys, keys.size, H);
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
    PrefetchRows(next.v, next.size, s, kDecodeValues, keys.size, H);
    for (int64_t g = 0; g < G; g += kDecodeHeads)
      WithHeads(G - g, [&](auto n) {
        DecodeValues<decltype(n)::value, kType>(to.out + g * H, H, keys, s, scores + g * kKeyBlock);
      });
  }
}

// The pieces of the keys [begin, end) that the token in column c of row r sees; all of them are in the pool.
struct DecodeToken {
  int64_t r, c, begin, end, length, pieces;
  int64_t first_item;  // items are (token, kv head, piece) in that order
};

inline DecodeToken MakeDecodeToken(const AttentionArguments& call, int64_t r, int64_t c, int64_t first_item) {
  DecodeToken row;
  const int64_t position = call.start[r] + c;
  row.r = r, row.c = c;
  row.begin = call.window > 0 ? std::max<int64_t>(0, position - call.window + 1) : 0;
  row.end = position + 1;
  const int64_t a_piece = (row.end - row.begin + kPieces - 1) / kPieces;
  row.length = std::max<int64_t>(1, (a_piece + kDecodePiece - 1) / kDecodePiece) * kDecodePiece;
  row.pieces = std::max<int64_t>(1, (row.end - row.begin + row.length - 1) / row.length);
  row.first_item = first_item;
  return row;
}

// One piece of kv head j of the token in column c of row r, the number `token` of all, and its keys [begin, end).
struct DecodeItem {
  int64_t token, r, c, j, piece, begin, end;
};

inline DecodeItem MakeDecodeItem(const std::vector<DecodeToken>& tokens, int64_t K, int64_t item) {
  int64_t t = 0;
  while (item >= tokens[t].first_item + tokens[t].pieces * K) ++t;
  const DecodeToken& row = tokens[t];
  const int64_t j = (item - row.first_item) / row.pieces, piece = (item - row.first_item) % row.pieces;
  const int64_t begin = row.begin + piece * row.length;
  return {t, row.r, row.c, j, piece, begin, std::min(row.end, begin + row.length)};
}

// Addresses of the block of an item that begins at position p; empty where the item ends before.
template <KvType kType>
inline void AddressBlock(const AttentionArguments& call, const DecodeItem& item, int64_t p, KeyBlock<kType>& to) {
  to.size = 0;
  if (p < item.end) AddressKeys(call, item.r, item.j, p, std::min(kKeyBlock, item.end - p), to);
}

// Computes an item. `next` is the one that this thread does afterwards, or null.
template <KvType kType>
inline void DecodePiece(const AttentionArguments& call, const DecodeItem& item, bool is_last, const DecodeItem* next,
                        float* scratch, const Partial& to) {
  const int64_t r = item.r, j = item.j;
  const int64_t H = call.head_dim, G = call.heads / call.kv_heads;
  float* q = scratch;
  float* scores = scratch + G * H;
  const int64_t token = r * call.columns + item.c;
  const float* from = call.q + token * call.q_stride + j * G * H;
  for (int64_t h = 0; h < G * H; h += kLanes) Store(q + h, Mul(Load(from + h), Set(call.scale)));
  for (int64_t g = 0; g < G; ++g) to.best[g] = kNoKeyYet, to.total[g] = 0.0f;
  for (int64_t h = 0; h < G * H; h += kLanes) Store(to.out + h, Zero());
  // Only the last piece reads the token's own slot; what a ring held there was `slots` positions before, out of sight.
  if (is_last && call.count[r] == 1) StoreHead(call, r, 0, j);
  KeyBlock<kType> blocks[2];
  KeyBlock<kType>*here = blocks, *then = blocks + 1;
  AddressBlock(call, item, item.begin, *here);
  for (int64_t p = item.begin; p < item.end; p += kKeyBlock) {
    if (p + kKeyBlock < item.end) AddressBlock(call, item, p + kKeyBlock, *then);
    else if (next != nullptr) AddressBlock(call, *next, next->begin, *then);
    else then->size = 0;
    DecodeBlock(q, G, H, *here, *then, scores, to);
    std::swap(here, then);
  }
}

template <KvType kType>
inline void AttendColumn(const AttentionArguments& call, Pool& pool) {
  const int64_t H = call.head_dim, K = call.kv_heads, G = call.heads / K;
  std::vector<DecodeToken> tokens;
  tokens.reserve(call.rows);
  int64_t items = 0;
  bool drafts = false;
  for (int64_t r = 0; r < call.rows; ++r) {
    if (!IsDecoded(call, r)) continue;
    drafts |= call.count[r] > 1;
    for (int64_t c = 0; c < call.count[r]; ++c) {
      tokens.push_back(MakeDecodeToken(call, r, c, items));
      items += tokens.back().pieces * K;
    }
  }
  const int64_t size = PartialSize(G, H);
  thread_local Scratch shared;
  float* partials = shared.Get(items * size);
  Countdowns left(static_cast<int64_t>(tokens.size()) * K, [&](int64_t i) { return tokens[i / K].pieces; });
  Phase store(drafts ? ChunkItems(call) : 0), attend(items);
  pool.Run([&](int) {
    if (drafts) StoreRows(call, store, [&](int64_t r) { return call.count[r] > 1 && IsDecoded(call, r); });
    thread_local Scratch own;
    float* scratch = own.Get(G * (H + kKeyBlock));
    attend.ShareAhead(true, [&](int64_t number, int64_t next_number) {
      const DecodeItem item = MakeDecodeItem(tokens, K, number);
      const int64_t pieces = tokens[item.token].pieces, first = number - item.piece;
      DecodeItem next;
      if (next_number >= 0) next = MakeDecodeItem(tokens, K, next_number);
      DecodePiece<kType>(call, item, item.piece == pieces - 1, next_number >= 0 ? &next : nullptr, scratch,
                         PartialAt(partials + number * size, G));
      if (!left.IsLast(item.token * K + item.j)) return;
      float* out = call.out + (item.r * call.columns + item.c) * call.out_stride + item.j * G * H;
      for (int64_t g = 0; g < G; ++g) Join(partials + first * size, pieces, G, H, g, out + g * H);
    });
  });
}
