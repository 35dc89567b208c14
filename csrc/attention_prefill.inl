// Attention of a chunk of queries. Included by attention.inl.
//
// Bound by arithmetic: 2 H multiply-adds a query and visible key. Lanes run along the queries, so that nothing is ever
// summed across a vector and K and V are read as they lie, one number broadcast to all queries:
//
//     scores_SQ = K_SH  @ q_HQ       tile of kTileRows keys  x kQueryVectors vectors of queries, H steps
//     out_HQ   += V_SH' @ w_SQ       tile of kTileRows heads' numbers x the same queries, kKeyBlock steps
//
// An item is one kv head of one row and up to 128 consecutive queries (column * G + head of the group): 32 columns of
// 1B. It walks over its keys in blocks of 64, which are widened to fp32 once for all its queries (128 KiB for H = 256,
// in L2; widening costs 5 % of the arithmetic at 128 queries, 20 % at 32), with a running maximum and sum per query
// (online softmax, Milakov and Gimelshein 2018). Keys that no query of a tile sees are skipped: a local layer costs
// O(window). 8 x 2 vectors are 16 accumulators of 32 registers: 10 loads for 16 multiply-adds. Both tiles run at 58 of
// Zen 4's 59 GFMA/s a core, an item at 53: softmax and rescaling take 5 %, turning queries and results 3 %, widening 2 %.
//
// With few items (a short chunk after a long text) the keys of an item are cut into pieces, joined as in decode.

#if GEMWORKS_TILE_PANELS >= 2
constexpr int kQueryVectors = 2, kTileRows = 8;
#else
constexpr int kQueryVectors = 1, kTileRows = 4;
#endif
constexpr int64_t kTileQueries = kQueryVectors * kLanes;
constexpr int64_t kItemQueries = 128;
constexpr int64_t kItemTiles = kItemQueries / kTileQueries;

// Items below which keys are cut, into how many pieces at most, and the smallest piece.
constexpr int64_t kManyItems = 8, kItemPieces = 8, kPieceKeys = 512;

// One tile's queries and what they have summed. Arrays are [.., kTileQueries].
struct QueryTile {
  float* q;         // [H]
  float* out;       // [H]
  float* best;      // largest score so far
  float* total;     // sum of weights so far
  float* position;  // of the query, from the row's start
  float* weights;   // [kKeyBlock], the block at hand
  int64_t first, last;  // positions of its first and last real query; empty: first > last
};

// A thread's memory: a block of keys and values in fp32, and the tiles of one item. Rows of k and v are 16 floats apart
// from a power of two, so that they do not share a few sets of L1.
struct PrefillScratch {
  int64_t stride;
  float *k, *v;
  float* room;  // [H], for rounding a head
  QueryTile tiles[kItemTiles];

  static int64_t Size(int64_t H) {
    return 2 * kKeyBlock * (H + kLanes) + H + kItemTiles * (2 * H + 3 + kKeyBlock) * kTileQueries;
  }
  PrefillScratch(float* memory, int64_t H) : stride(H + kLanes), k(memory), v(k + kKeyBlock * stride), room(v + kKeyBlock * stride) {
    float* next = room + H;
    const auto take = [&](int64_t rows) { return std::exchange(next, next + rows * kTileQueries); };
    for (QueryTile& tile : tiles)
      tile = {take(H), take(H), take(1), take(1), take(1), take(kKeyBlock), 0, -1};
  }
};

// scores[i] = K[i] . q for kTileRows keys.
inline void ScoreRows(const float* k, int64_t stride, const float* q, int64_t H, float* scores) {
  Floats acc[kTileRows][kQueryVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 16
    for (int n = 0; n < kQueryVectors; ++n) acc[i][n] = Zero();
  for (int64_t h = 0; h < H; ++h) {
    Floats query[kQueryVectors];
#pragma GCC unroll 16
    for (int n = 0; n < kQueryVectors; ++n) query[n] = Load(q + h * kTileQueries + n * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const Floats key = Set(k[i * stride + h]);
#pragma GCC unroll 16
      for (int n = 0; n < kQueryVectors; ++n) acc[i][n] = MulAdd(key, query[n], acc[i][n]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 16
    for (int n = 0; n < kQueryVectors; ++n) Store(scores + i * kTileQueries + n * kLanes, acc[i][n]);
}

// out[i] = out[i] * shrink + sum over s of V[s][i] * weights[s], for kTileRows numbers of the head.
inline void AddValueRows(const float* v, int64_t stride, int64_t keys, const float* weights, const float* shrink,
                         float* out) {
  Floats acc[kTileRows][kQueryVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 16
    for (int n = 0; n < kQueryVectors; ++n)
      acc[i][n] = Mul(Load(out + i * kTileQueries + n * kLanes), Load(shrink + n * kLanes));
  for (int64_t s = 0; s < keys; ++s) {
    Floats weight[kQueryVectors];
#pragma GCC unroll 16
    for (int n = 0; n < kQueryVectors; ++n) weight[n] = Load(weights + s * kTileQueries + n * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const Floats value = Set(v[s * stride + i]);
#pragma GCC unroll 16
      for (int n = 0; n < kQueryVectors; ++n) acc[i][n] = MulAdd(value, weight[n], acc[i][n]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 16
    for (int n = 0; n < kQueryVectors; ++n) Store(out + i * kTileQueries + n * kLanes, acc[i][n]);
}

// Pushes the scores of keys a query does not see below every maximum. first: the block's first position; the mask is
// min(0, distance) * 1e30, exact because positions are whole numbers below 2^24.
inline void MaskScores(const QueryTile& tile, int64_t first, int64_t begin, int64_t end, int64_t window) {
  const Floats huge = Set(-kMasked);
  for (int64_t s = begin; s < end; ++s) {
    const Floats key = Set(static_cast<float>(first + s));
    for (int64_t n = 0; n < kTileQueries; n += kLanes) {
      float* at = tile.weights + s * kTileQueries + n;
      const Floats distance = Sub(Load(tile.position + n), key);
      Floats over = Min(Zero(), distance);
      if (window > 0) over = Add(over, Min(Zero(), Sub(Set(static_cast<float>(window - 1)), distance)));
      Store(at, MulAdd(over, huge, Load(at)));
    }
  }
}

// Turns the scores of keys [begin, end) into weights and brings maximum and sum up to date; what was summed before is to
// be multiplied by shrink[kTileQueries].
inline void UpdateSoftmax(const QueryTile& tile, int64_t begin, int64_t end, float* shrink) {
  for (int64_t n = 0; n < kTileQueries; n += kLanes) {
    float* scores = tile.weights + n;
    const Floats before = Load(tile.best + n);
    Floats best = before, sum = Zero();
    for (int64_t s = begin; s < end; ++s) best = Max(best, Load(scores + s * kTileQueries));
    for (int64_t s = begin; s < end; ++s) {
      const Floats weight = Exp(Sub(Load(scores + s * kTileQueries), best));
      Store(scores + s * kTileQueries, weight);
      sum = Add(sum, weight);
    }
    const Floats by = Exp(Sub(before, best));
    Store(shrink + n, by);
    Store(tile.best + n, best);
    Store(tile.total + n, MulAdd(Load(tile.total + n), by, sum));
  }
}

// Adds the block of `keys` keys, the first at position `first`, to one tile: those that some query of it sees.
inline void AddBlock(const AttentionArguments& call, const PrefillScratch& mine, const QueryTile& tile, int64_t first,
                     int64_t keys) {
  const int64_t H = call.head_dim, window = call.window, end = std::min(keys, tile.last + 1 - first);
  int64_t begin = window > 0 ? std::max<int64_t>(0, tile.first - window + 1 - first) : 0;
  begin -= begin % kTileRows;  // within the block: a row of scores too many weighs nothing
  if (begin >= end) return;
  for (int64_t s = begin; s < end; s += kTileRows)
    ScoreRows(mine.k + s * mine.stride, mine.stride, tile.q, H, tile.weights + s * kTileQueries);
  const bool all_seen = first + end - 1 <= tile.first && (window == 0 || first + begin > tile.last - window);
  if (!all_seen) MaskScores(tile, first, begin, end, window);
  alignas(64) float shrink[kTileQueries];
  UpdateSoftmax(tile, begin, end, shrink);
  const float* weights = tile.weights + begin * kTileQueries;
  for (int64_t h = 0; h < H; h += kTileRows)
    AddValueRows(mine.v + begin * mine.stride + h, mine.stride, end - begin, weights, shrink, tile.out + h * kTileQueries);
}

// Widens positions [p, p + n) of row r, kv head j, into the thread's block: from the pool before `in_chunk`, from the
// chunk itself from there on.
template <KvType kType>
inline void WidenBlock(const AttentionArguments& call, int64_t r, int64_t j, int64_t p, int64_t n, int64_t in_chunk,
                       const PrefillScratch& mine) {
  const int64_t H = call.head_dim, pooled = std::clamp<int64_t>(in_chunk - p, 0, n);
  if (pooled > 0) {
    KeyBlock<kType> keys;
    AddressKeys(call, r, j, p, pooled, keys);
    for (int64_t s = 0; s < pooled; ++s) {
      float *k = mine.k + s * mine.stride, *v = mine.v + s * mine.stride;
      const bool scaled = kType == KvType::kInt8;
      const Floats k_scale = Set(scaled ? keys.k_scale[s] : 1.0f), v_scale = Set(scaled ? keys.v_scale[s] : 1.0f);
      for (int64_t h = 0; h < H; h += kLanes) {
        const Floats key = Stored<kType>::Read(keys.k[s] + h), value = Stored<kType>::Read(keys.v[s] + h);
        Store(k + h, scaled ? Mul(key, k_scale) : key);
        Store(v + h, scaled ? Mul(value, v_scale) : value);
      }
    }
  }
  for (int64_t s = pooled; s < n; ++s) {
    const int64_t token = r * call.columns + p + s - call.start[r];
    RoundHead<kType>(call.k + token * call.k_stride + j * H, H, mine.room, mine.k + s * mine.stride);
    RoundHead<kType>(call.v + token * call.v_stride + j * H, H, mine.room, mine.v + s * mine.stride);
  }
}

// One item: queries [begin, end) of kv head j of row r, counted as column * G + head of the group; keys in [from, to).
struct PrefillItem {
  int64_t r, j, begin, end, from, to;
  int64_t Queries() const { return end - begin; }
};

// One query of an item: its tile and lane there, its place in the call, and its number counted from the item's first.
struct Query {
  int64_t tile, lane, token, head, index;
};

// Calls f(query, h) for all queries and every 16th h: tile by tile and 16 numbers of each query in turn, so that the
// [H][queries] side is touched a line at a time (a query at a time it took as long as a tenth of a window's arithmetic).
template <class F>
inline void ForQueries(const AttentionArguments& call, const PrefillItem& item, F&& f) {
  const int64_t G = call.heads / call.kv_heads;
  Query queries[kTileQueries];
  for (int64_t first = item.begin; first < item.end; first += kTileQueries) {
    const int64_t n = std::min(kTileQueries, item.end - first), done = first - item.begin;
    for (int64_t i = 0; i < n; ++i)
      queries[i] = {done / kTileQueries, i, item.r * call.columns + (first + i) / G, item.j * G + (first + i) % G, done + i};
    for (int64_t h = 0; h < call.head_dim; h += kLanes)
      for (int64_t i = 0; i < n; ++i) f(queries[i], h);
  }
}

// Starts the item's tiles: positions of their queries, nothing summed. Lanes past the last query repeat nothing: their q
// is 0 and they see what the tile's last query sees.
inline void StartTiles(const AttentionArguments& call, const PrefillItem& item, PrefillScratch& mine) {
  const int64_t H = call.head_dim, G = call.heads / call.kv_heads, start = call.start[item.r];
  for (int64_t t = 0; t < kItemTiles; ++t) {
    QueryTile& tile = mine.tiles[t];
    const int64_t first = item.begin + t * kTileQueries, end = std::min(item.end, first + kTileQueries);
    tile.first = start + first / G, tile.last = first < end ? start + (end - 1) / G : tile.first - 1;
    if (first >= end) continue;
    if (end - first < kTileQueries) std::memset(tile.q, 0, sizeof(float) * H * kTileQueries);
    std::memset(tile.out, 0, sizeof(float) * H * kTileQueries);
    for (int64_t n = 0; n < kTileQueries; ++n) {
      tile.best[n] = kNoKeyYet, tile.total[n] = 0.0f;
      tile.position[n] = static_cast<float>(start + std::min(first + n, end - 1) / G);
    }
  }
}

// Brings the item's queries into its tiles, scaled.
inline void LoadQueries(const AttentionArguments& call, const PrefillItem& item, PrefillScratch& mine) {
  const int64_t H = call.head_dim;
  StartTiles(call, item, mine);
  ForQueries(call, item, [&](const Query& query, int64_t h) {
    const float* from = call.q + query.token * call.q_stride + query.head * H + h;
    float* to = mine.tiles[query.tile].q + h * kTileQueries + query.lane;
    for (int i = 0; i < kLanes; ++i) to[i * kTileQueries] = from[i] * call.scale;
  });
}

#if defined(GEMWORKS_BF16_DOTS)
#include "attention_bf16.inl"
#endif

template <KvType kType>
inline void AttendItem(const AttentionArguments& call, const PrefillItem& item, PrefillScratch& mine) {
#if defined(GEMWORKS_BF16_DOTS)
  if constexpr (kType == KvType::kBf16) return AttendItemInBf16(call, item, mine);
#endif
  LoadQueries(call, item, mine);
  const int64_t in_chunk = call.kv.is_ring ? call.start[item.r] : item.to;
  for (int64_t p = item.from; p < item.to; p += kKeyBlock) {
    const int64_t keys = std::min(kKeyBlock, item.to - p);
    WidenBlock<kType>(call, item.r, item.j, p, keys, in_chunk, mine);
    for (const QueryTile& tile : mine.tiles) AddBlock(call, mine, tile, p, keys);
  }
}

// Writes the item's result to `out`, divided by its sum of weights (which this turns into its inverse).
inline void WriteOut(const AttentionArguments& call, const PrefillItem& item, const PrefillScratch& mine) {
  const int64_t H = call.head_dim;
  for (const QueryTile& tile : mine.tiles)
    for (int64_t n = 0; n < kTileQueries; n += kLanes) Store(tile.total + n, Div(Set(1.0f), Load(tile.total + n)));
  ForQueries(call, item, [&](const Query& query, int64_t h) {
    const QueryTile& tile = mine.tiles[query.tile];
    const float* from = tile.out + h * kTileQueries + query.lane;
    float* to = call.out + query.token * call.out_stride + query.head * H + h;
    for (int i = 0; i < kLanes; ++i) to[i] = from[i * kTileQueries] * tile.total[query.lane];
  });
}

inline void WritePartial(const AttentionArguments& call, const PrefillItem& item, const PrefillScratch& mine, float* at) {
  const int64_t H = call.head_dim;
  const Partial to = PartialAt(at, item.Queries());
  ForQueries(call, item, [&](const Query& query, int64_t h) {
    const QueryTile& tile = mine.tiles[query.tile];
    to.best[query.index] = tile.best[query.lane], to.total[query.index] = tile.total[query.lane];
    const float* from = tile.out + h * kTileQueries + query.lane;
    for (int i = 0; i < kLanes; ++i) to.out[query.index * H + h + i] = from[i * kTileQueries];
  });
}

// How many pieces the keys of row r's items are cut into: what depends on other rows would change its result with them.
inline int64_t PiecesOf(const AttentionArguments& call, int64_t r) {
  const int64_t count = call.count[r], queries = count * (call.heads / call.kv_heads);
  if ((queries + kItemQueries - 1) / kItemQueries * call.kv_heads >= kManyItems) return 1;
  const int64_t end = call.start[r] + count, begin = call.window > 0 ? call.start[r] - call.window + 1 : 0;
  return std::clamp<int64_t>((end - std::max<int64_t>(begin, 0)) / kPieceKeys, 1, kItemPieces);
}

// A call's items, numbered (tile of queries, row, kv head, piece) with the last queries first: of a causal chunk they
// see the most keys.
struct PrefillPlan {
  int64_t tiles, groups, pieces;

  explicit PrefillPlan(const AttentionArguments& call) {
    const int64_t queries = call.columns * (call.heads / call.kv_heads);
    tiles = (queries + kItemQueries - 1) / kItemQueries;
    groups = tiles * call.rows * call.kv_heads;
    pieces = 1;
    for (int64_t r = 0; r < call.rows; ++r) {
      if (IsChunk(call, r)) pieces = std::max(pieces, PiecesOf(call, r));
    }
  }

  // Queries are empty where the whole group is padding; keys are empty in pieces past the row's last.
  PrefillItem At(const AttentionArguments& call, int64_t group, int64_t piece) const {
    const int64_t G = call.heads / call.kv_heads, of_tile = call.rows * call.kv_heads;
    PrefillItem item;
    item.r = group % of_tile / call.kv_heads, item.j = group % call.kv_heads;
    item.begin = (tiles - 1 - group / of_tile) * kItemQueries;
    const int64_t queries = IsChunk(call, item.r) ? call.count[item.r] * G : 0;
    item.end = std::max(item.begin, std::min<int64_t>(item.begin + kItemQueries, queries));
    if (item.Queries() == 0) return item.from = item.to = 0, item;
    const int64_t start = call.start[item.r], end = start + (item.end - 1) / G + 1;
    const int64_t begin = call.window > 0 ? std::max<int64_t>(0, start + item.begin / G - call.window + 1) : 0;
    const int64_t blocks = (end - begin + kKeyBlock - 1) / kKeyBlock, own = PiecesOf(call, item.r);
    const int64_t length = (blocks + own - 1) / own * kKeyBlock;
    item.from = std::min(end, begin + piece * length), item.to = std::min(end, item.from + length);
    return item;
  }
};

template <KvType kType>
inline void AttendChunk(const AttentionArguments& call, Pool& pool) {
  const int64_t H = call.head_dim;
  const PrefillPlan plan(call);
  const int64_t size = PartialSize(std::min(kItemQueries, call.columns * (call.heads / call.kv_heads)), H);
  thread_local Scratch shared;
  float* partials = plan.pieces > 1 ? shared.Get(plan.groups * plan.pieces * size) : nullptr;
  Countdowns left(plan.groups, [&](int64_t) { return plan.pieces; });
  Phase store(ChunkItems(call)), attend(plan.groups * plan.pieces);
  const auto is_chunk = [&](int64_t r) { return IsChunk(call, r); };
  const auto finish = [&](int64_t group, const PrefillItem& item) {
    float* first = partials + group * plan.pieces * size;
    ForQueries(call, item, [&](const Query& query, int64_t h) {
      if (h > 0) return;
      float* out = call.out + query.token * call.out_stride + query.head * H;
      Join(first, plan.pieces, item.Queries(), H, query.index, out);
    });
  };
  pool.Run([&](int) {
    if (!call.kv.is_ring) StoreRows(call, store, is_chunk);
    thread_local Scratch own;
    PrefillScratch mine(own.Get(PrefillScratch::Size(H)), H);
    attend.Share([&](int64_t i) {
      const int64_t group = i / plan.pieces, piece = i % plan.pieces;
      const PrefillItem item = plan.At(call, group, piece);
      if (item.Queries() == 0) return;
      AttendItem<kType>(call, item, mine);
      if (plan.pieces == 1) {
        WriteOut(call, item, mine);
        return;
      }
      // Pieces of a group with fewer queries than `size` allows lie closer together.
      WritePartial(call, item, mine, partials + group * plan.pieces * size + piece * PartialSize(item.Queries(), H));
      if (left.IsLast(group)) finish(group, item);
    });
    if (call.kv.is_ring) StoreRows(call, store, is_chunk);
  });
}
