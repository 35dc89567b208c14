// Attention of every patch to every patch in fp32: the exact path of the vision tower. Included by kernels_<isa>.cc.
//
//     an item    one head, 128 queries, in tiles of 32 (AVX-512; 16 elsewhere) whose lanes are the queries
//     a step     64 keys, copied once for all tiles of the item (rows padded to whole tiles with zeros)
//
//         scores [64 keys][queries]  =  K . q          ScoreRows of attention_prefill.inl
//         weights, running maximum and sum             UpdateSoftmax
//         out    [H][queries]        =  out * shrink + V' . weights
//
// Scores of an item are 64 x 32 floats in L1: 8 KB, where all heads' scores of 4,096 patches would be 1.07 GB. The same
// tiles as in a chunk's attention, whose fp32 ceiling and register budget hold here too; no mask, no pool, no group.

// One thread's memory: a block of keys and values and the tiles of one item.
struct AllScratch {
  int64_t width, stride;  // head width in whole tiles; floats between rows
  float *k, *v;
  QueryTile tiles[kItemTiles];

  static int64_t Width(int64_t H) { return (H + kTileRows - 1) / kTileRows * kTileRows; }
  static int64_t Size(int64_t H) {
    return 2 * kKeyBlock * (Width(H) + kLanes) + kItemTiles * (2 * Width(H) + 2 + kKeyBlock) * kTileQueries;
  }
  AllScratch(float* memory, int64_t H) : width(Width(H)), stride(width + kLanes), k(memory), v(k + kKeyBlock * stride) {
    float* next = v + kKeyBlock * stride;
    const auto take = [&](int64_t rows) { return std::exchange(next, next + rows * kTileQueries); };
    for (QueryTile& tile : tiles) tile = {take(width), take(width), take(1), take(1), nullptr, take(kKeyBlock), 0, 0};
  }
};

// `n` rows of H floats into rows of `stride`, columns up to `width` and rows up to a whole tile zero.
inline void PadRows(const float* from, int64_t n, int64_t H, int64_t width, int64_t stride, float* to) {
  const int64_t whole = (n + kTileRows - 1) / kTileRows * kTileRows;
  for (int64_t s = 0; s < whole; ++s) {
    if (s < n) std::memcpy(to + s * stride, from + s * H, H * sizeof(float));
    const int64_t filled = s < n ? H : 0;
    std::memset(to + s * stride + filled, 0, (width - filled) * sizeof(float));
  }
}

inline void AttendAllItem(const AttendAllArguments& g, int64_t head, int64_t first, AllScratch& mine) {
  const int64_t P = g.patches, H = g.head_dim, at = head * P * H, count = std::min(kItemQueries, P - first);
  const int64_t tiles = (count + kTileQueries - 1) / kTileQueries;
  for (int64_t t = 0; t < tiles; ++t) {
    const QueryTile& tile = mine.tiles[t];
    std::memset(tile.q, 0, mine.width * kTileQueries * sizeof(float));
    std::memset(tile.out, 0, mine.width * kTileQueries * sizeof(float));
    for (int64_t n = 0; n < kTileQueries; ++n) tile.best[n] = kNoKeyYet, tile.total[n] = 0.0f;
  }
  for (int64_t i = 0; i < count; ++i) {
    float* to = mine.tiles[i / kTileQueries].q + i % kTileQueries;
    for (int64_t h = 0; h < H; ++h) to[h * kTileQueries] = g.q[at + (first + i) * H + h] * g.scale;
  }
  alignas(64) float shrink[kTileQueries];
  for (int64_t p = 0; p < P; p += kKeyBlock) {
    const int64_t keys = std::min(kKeyBlock, P - p);
    PadRows(g.k + at + p * H, keys, H, mine.width, mine.stride, mine.k);
    PadRows(g.v + at + p * H, keys, H, mine.width, mine.stride, mine.v);
    for (int64_t t = 0; t < tiles; ++t) {
      const QueryTile& tile = mine.tiles[t];
      for (int64_t s = 0; s < keys; s += kTileRows)
        ScoreRows(mine.k + s * mine.stride, mine.stride, tile.q, H, tile.weights + s * kTileQueries);
      UpdateSoftmax(tile, 0, keys, shrink);
      for (int64_t h = 0; h < mine.width; h += kTileRows)
        AddValueRows(mine.v + h, mine.stride, keys, tile.weights, shrink, tile.out + h * kTileQueries);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const QueryTile& tile = mine.tiles[i / kTileQueries];
    const int64_t lane = i % kTileQueries;
    const float inverse = 1.0f / tile.total[lane];
    float* to = g.out + at + (first + i) * H;
    for (int64_t h = 0; h < H; ++h) to[h] = tile.out[h * kTileQueries + lane] * inverse;
  }
}

inline void AttendAllExactly(const AttendAllArguments& g, Pool& pool) {
  const int64_t groups = (g.patches + kItemQueries - 1) / kItemQueries;
  Phase items(g.heads * groups);
  pool.Run([&](int) {
    thread_local Scratch own;
    AllScratch mine(own.Get(AllScratch::Size(g.head_dim)), g.head_dim);
    items.Share([&](int64_t i) { AttendAllItem(g, i / groups, i % groups * kItemQueries, mine); });
  });
}
