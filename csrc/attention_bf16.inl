// An item of attention_prefill.inl in products of bf16 pairs, for pools of bf16. Included by it.
//
//     q        pairs of neighbouring columns   [H / 2][queries]     rounded to bf16 after the scale
//     K        rows as they are stored         [keys][H]            one pair broadcast to all queries; a ring's chunk rounded
//     scores   fp32                            [keys][queries]
//     weights  pairs of neighbouring keys      [keys / 2][queries]  rounded to bf16; their sum is of the rounded ones
//     V        pairs of neighbouring keys      [keys / 2][H]        one pair broadcast
//     out      fp32                            [H][queries]
//
// The same tiles as in fp32, of half as many instructions: 116 G multiply-adds a second on a core where fp32 has 58
// (Zen 4, vdpbf16ps). What remains of the softmax, rescaling and turning weighs twice as much.

constexpr int64_t kKeyPairs = kKeyBlock / 2;

// The pair at p, repeated for every lane.
inline Ints RepeatPair(const void* p) {
  int32_t pair;
  std::memcpy(&pair, p, 4);
  return SetInts(pair);
}

// A thread's block of keys and values, in the memory of fp32's.
struct PairBlock {
  int64_t k_stride, v_stride;  // in uint16 and in pairs
  uint16_t* k;
  int32_t* v;

  PairBlock(const PrefillScratch& mine, int64_t H)
      : k_stride(H + 2 * kLanes), v_stride(H + kLanes), k(reinterpret_cast<uint16_t*>(mine.k)),
        v(reinterpret_cast<int32_t*>(mine.v)) {}
};

// scores[i] = K[i] . q for kTileRows keys.
inline void ScorePairRows(const uint16_t* k, int64_t stride, const int32_t* q, int64_t H, float* scores) {
  Floats acc[kTileRows][kQueryVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 16
    for (int n = 0; n < kQueryVectors; ++n) acc[i][n] = Zero();
  for (int64_t h = 0; h < H / 2; ++h) {
    Ints query[kQueryVectors];
#pragma GCC unroll 16
    for (int n = 0; n < kQueryVectors; ++n) query[n] = LoadInts(q + h * kTileQueries + n * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const Ints key = RepeatPair(k + i * stride + 2 * h);
#pragma GCC unroll 16
      for (int n = 0; n < kQueryVectors; ++n) acc[i][n] = DotPairs(acc[i][n], key, query[n]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 16
    for (int n = 0; n < kQueryVectors; ++n) Store(scores + i * kTileQueries + n * kLanes, acc[i][n]);
}

// out[i] = out[i] * shrink + sum over pairs of V[pair][i] . weights[pair], for kTileRows numbers of the head.
inline void AddValuePairRows(const int32_t* v, int64_t stride, int64_t pairs, const int32_t* weights, const float* shrink,
                             float* out) {
  Floats acc[kTileRows][kQueryVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 16
    for (int n = 0; n < kQueryVectors; ++n)
      acc[i][n] = Mul(Load(out + i * kTileQueries + n * kLanes), Load(shrink + n * kLanes));
  for (int64_t s = 0; s < pairs; ++s) {
    Ints weight[kQueryVectors];
#pragma GCC unroll 16
    for (int n = 0; n < kQueryVectors; ++n) weight[n] = LoadInts(weights + s * kTileQueries + n * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const Ints value = RepeatPair(v + s * stride + i);
#pragma GCC unroll 16
      for (int n = 0; n < kQueryVectors; ++n) acc[i][n] = DotPairs(acc[i][n], value, weight[n]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 16
    for (int n = 0; n < kQueryVectors; ++n) Store(out + i * kTileQueries + n * kLanes, acc[i][n]);
}

// UpdateSoftmax, with the weights of keys [begin, end), begin even, left as pairs. They take the place of the scores,
// pair p that of key p, which was read before.
inline void UpdatePairSoftmax(const QueryTile& tile, int64_t begin, int64_t end, float* shrink) {
  const Ints ones = ToPairs(Set(1.0f), Set(1.0f));
  for (int64_t n = 0; n < kTileQueries; n += kLanes) {
    float* scores = tile.weights + n;
    const Floats before = Load(tile.best + n);
    Floats best = before, sum = Zero();
    for (int64_t s = begin; s < end; ++s) best = Max(best, Load(scores + s * kTileQueries));
    for (int64_t s = begin; s < end; s += 2) {
      const Floats even = Exp(Sub(Load(scores + s * kTileQueries), best));
      const Floats odd = s + 1 < end ? Exp(Sub(Load(scores + (s + 1) * kTileQueries), best)) : Zero();
      const Ints pair = ToPairs(even, odd);
      Store(scores + s / 2 * kTileQueries, AsFloats(pair));
      sum = DotPairs(sum, pair, ones);
    }
    const Floats by = Exp(Sub(before, best));
    Store(shrink + n, by);
    Store(tile.best + n, best);
    Store(tile.total + n, MulAdd(Load(tile.total + n), by, sum));
  }
}

// AddBlock in pairs.
inline void AddPairBlock(const AttentionArguments& call, const PairBlock& block, const QueryTile& tile, int64_t first,
                         int64_t keys) {
  const int64_t H = call.head_dim, window = call.window, end = std::min(keys, tile.last + 1 - first);
  int64_t begin = window > 0 ? std::max<int64_t>(0, tile.first - window + 1 - first) : 0;
  begin -= begin % kTileRows;
  if (begin >= end) return;
  const int32_t* q = reinterpret_cast<const int32_t*>(tile.q);
  for (int64_t s = begin; s < end; s += kTileRows)
    ScorePairRows(block.k + s * block.k_stride, block.k_stride, q, H, tile.weights + s * kTileQueries);
  const bool all_seen = first + end - 1 <= tile.first && (window == 0 || first + begin > tile.last - window);
  if (!all_seen) MaskScores(tile, first, begin, end, window);
  alignas(64) float shrink[kTileQueries];
  UpdatePairSoftmax(tile, begin, end, shrink);
  const int32_t* weights = reinterpret_cast<const int32_t*>(tile.weights) + begin / 2 * kTileQueries;
  const int32_t* v = block.v + begin / 2 * block.v_stride;
  for (int64_t h = 0; h < H; h += kTileRows)
    AddValuePairRows(v + h, block.v_stride, (end - begin + 1) / 2, weights, shrink, tile.out + h * kTileQueries);
}

// Brings positions [p, p + n) of row r, kv head j, into the block: WidenBlock in pairs. An odd last key is paired with
// zeros.
inline void PairUp(const AttentionArguments& call, int64_t r, int64_t j, int64_t p, int64_t n, int64_t in_chunk,
                   const PairBlock& block) {
  const int64_t H = call.head_dim, pooled = std::clamp<int64_t>(in_chunk - p, 0, n);
  KeyBlock<KvType::kBf16> keys;
  if (pooled > 0) AddressKeys(call, r, j, p, pooled, keys);
  const auto token = [&](int64_t s) { return r * call.columns + p + s - call.start[r]; };
  for (int64_t s = 0; s < n; ++s) {
    uint16_t* to = block.k + s * block.k_stride;
    if (s < pooled) std::memcpy(to, keys.k[s], sizeof(uint16_t) * H);
    else for (int64_t h = 0; h < H; h += kLanes) StoreBf16(to + h, Load(call.k + token(s) * call.k_stride + j * H + h));
  }
  alignas(64) uint16_t rounded[2][kLanes] = {};
  for (int64_t s = 0; s < n; s += 2) {
    for (int64_t h = 0; h < H; h += kLanes) {
      const uint16_t* rows[2];
      for (int odd = 0; odd < 2; ++odd) {
        rows[odd] = rounded[odd];
        if (s + odd < pooled) rows[odd] = keys.v[s + odd] + h;
        else if (s + odd < n) StoreBf16(rounded[odd], Load(call.v + token(s + odd) * call.v_stride + j * H + h));
        else std::memset(rounded[odd], 0, sizeof(rounded[odd]));
      }
      StoreInts(block.v + s / 2 * block.v_stride + h, LoadPairs(rows[0], rows[1]));
    }
  }
}

// AttendItem in pairs.
inline void AttendItemInBf16(const AttentionArguments& call, const PrefillItem& item, PrefillScratch& mine) {
  StartTiles(call, item, mine);
  ForQueries(call, item, [&](const Query& query, int64_t h) {
    uint16_t rounded[kLanes];
    StoreBf16(rounded, Mul(Load(call.q + query.token * call.q_stride + query.head * call.head_dim + h), Set(call.scale)));
    float* to = mine.tiles[query.tile].q + h / 2 * kTileQueries + query.lane;
    for (int i = 0; i < kLanes / 2; ++i) std::memcpy(to + i * kTileQueries, rounded + 2 * i, 4);
  });
  const PairBlock block(mine, call.head_dim);
  const int64_t in_chunk = call.kv.is_ring ? call.start[item.r] : item.to;
  for (int64_t p = item.from; p < item.to; p += kKeyBlock) {
    const int64_t keys = std::min(kKeyBlock, item.to - p);
    PairUp(call, item.r, item.j, p, keys, in_chunk, block);
    for (const QueryTile& tile : mine.tiles) AddPairBlock(call, block, tile, p, keys);
  }
}
