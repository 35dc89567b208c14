// Attention of every patch to every patch in products of bytes: the fast path of the vision tower. Included by
// kernels_<isa>.cc. Half as many instructions as bf16 pairs and a quarter of fp32's, on every set that has Dot4.
//
// What softmax does not see is taken off first: one vector from all keys (it adds the same to all scores of a query) and
// one from all values (weights sum to 1, so it is added back at the end). What is left is rounded:
//
//     query   s8, a scale for each                              as u8 = code + 128: Dot4 wants one side unsigned
//     key     s8, a scale for a block of 128                    start[key] = -128 * sum of codes takes the offset back
//     value   s8, a scale for each channel x one for a block    both leave the inner loop
//     weight  u8 = round(255 * exp(score - the block's largest score of this query))
//
// A block's weights have a scale of their own, so a query that looks at few keys and one that looks at all lose alike:
// half a step of 1 / 255 of the block's largest weight. Their sum is that of the rounded weights.
//
//     q        [H / 4][32 queries][4]        one line a vector of 16 queries
//     K        [key][H]                      four bytes broadcast to all queries
//     scores   fp32 [128 keys][32 queries]   exact whole numbers
//     weights  [32][32 queries][4 keys]
//     V        [32][H][4 keys]               four bytes broadcast
//     out      fp32 [H][32 queries]          out * shrink + sums * grow, once a block
//
// An item is one head and 128 queries in four tiles; K, V of a block and the tile's scores and weights, 40 KB, lie in L1
// and L2. Ceiling, a vector of 16 queries x 1 key at H = 72: 18 Dot4 for the score and 18 for the value; beside them a
// dozen vector instructions of the softmax, half on the same ports, and 1.1 for `out`, which 64 keys a block would
// double: some 36 / 43 of the Dot4 peak. Zen 4, 227 GMAC/s a core: scores 181, values 222, all together 172.

constexpr int64_t kAllKeys = 128;
constexpr int64_t kAllGroups = kAllKeys / 4;
constexpr float kLog2E = 1.44269504088896341f;
// -2^30: an absent key's score, below every real one (at most H * 127 * 255).
constexpr int32_t kAbsent = -(1 << 30);

// 2^x for x <= 8 within 8e-5 of itself, a fiftieth of a step of the weights; about 0 below -126. 2^n by the exponent,
// n = floor(x), and the minimax cubic of 2^r, 0 <= r < 1.
inline Floats Exp2Coarse(Floats x) {
  const Floats n = Floor(x), r = Sub(x, n);
  Floats p = MulAdd(Set(0.07802452f), r, Set(0.22606716f));
  p = MulAdd(p, r, Set(0.69583354f));
  p = MulAdd(p, r, Set(0.99992522f));
  return TimesPowerOf2(p, n);
}

// Sixteen floats of a row that ends at H, zeros past it.
inline Floats LoadUpTo(const float* row, int64_t h, int64_t H) {
  if (h + kLanes <= H) return Load(row + h);
  alignas(64) float part[kLanes] = {};
  std::memcpy(part, row + h, (H - h) * sizeof(float));
  return Load(part);
}

// Keys and values of all heads in bytes, and one thread's tiles.
struct BytePlan {
  int64_t heads, patches, head_dim, steps, row, blocks;  // steps: H / 4; row: H in whole vectors
  int8_t *k, *v;           // [N, blocks, 128, 4 * steps], [N, blocks, 32, row, 4]
  int32_t* start;          // [N, blocks, 128]
  float *k_scale, *v_scale;  // [N, blocks]
  float *channel, *mean;   // [N, row]: of values

  static int64_t Blocks(int64_t P) { return (P + kAllKeys - 1) / kAllKeys; }
  static int64_t Row(int64_t H) { return (H + kLanes - 1) / kLanes * kLanes; }
  static int64_t Bytes(int64_t N, int64_t P, int64_t H) {
    const int64_t keys = N * Blocks(P) * kAllKeys;
    return Aligned(keys * ((H + 3) / 4 * 4)) + Aligned(keys * Row(H)) + Aligned(keys * 4) + 2 * Aligned(N * Blocks(P) * 4) +
           2 * Aligned(N * Row(H) * 4);
  }
  BytePlan(uint8_t* memory, int64_t N, int64_t P, int64_t H)
      : heads(N), patches(P), head_dim(H), steps((H + 3) / 4), row(Row(H)), blocks(Blocks(P)) {
    const auto take = [&](int64_t bytes) { return std::exchange(memory, memory + Aligned(bytes)); };
    const int64_t keys = N * blocks * kAllKeys;
    k = reinterpret_cast<int8_t*>(take(keys * 4 * steps));
    v = reinterpret_cast<int8_t*>(take(keys * row));
    start = reinterpret_cast<int32_t*>(take(keys * 4));
    k_scale = reinterpret_cast<float*>(take(N * blocks * 4));
    v_scale = reinterpret_cast<float*>(take(N * blocks * 4));
    channel = reinterpret_cast<float*>(take(N * row * 4));
    mean = reinterpret_cast<float*>(take(N * row * 4));
  }
  int64_t KeysOf(int64_t block) const { return std::min(kAllKeys, patches - block * kAllKeys); }
};

// mean[h] of P rows of H floats.
inline void MeanRow(const float* x, int64_t P, int64_t H, float* mean) {
  for (int64_t h = 0; h < H; h += kLanes) {
    Floats sum = Zero();
    for (int64_t p = 0; p < P; ++p) sum = Add(sum, LoadUpTo(x + p * H, h, H));
    Store(mean + h, Mul(sum, Set(1.0f / static_cast<float>(P))));
  }
}

// Codes of sixteen numbers times sixteen inverses.
inline Ints ToCodesBy(Floats x, Floats inverse) {
  return ToInts(Min(Max(Mul(x, inverse), Set(-127.0f)), Set(127.0f)));
}

// Head n's keys into bytes. `room`: `row` floats.
inline void PackKeys(const BytePlan& plan, int64_t n, const float* x, float* room) {
  const int64_t H = plan.head_dim, width = 4 * plan.steps;
  MeanRow(x, plan.patches, H, room);
  for (int64_t b = 0; b < plan.blocks; ++b) {
    const int64_t keys = plan.KeysOf(b), at = n * plan.blocks + b;
    const float* rows = x + b * kAllKeys * H;
    Floats most = Zero();
    for (int64_t s = 0; s < keys; ++s)
      for (int64_t h = 0; h < H; h += kLanes) {
        const Floats mean = LoadUpTo(room, h, H);  // zero past H, as the row is
        most = Max(most, Abs(Sub(LoadUpTo(rows + s * H, h, H), mean)));
      }
    const float largest = Largest(most), inverse = largest > 0 ? 127.0f / largest : 0.0f;
    plan.k_scale[at] = largest * (1.0f / 127.0f);
    for (int64_t s = 0; s < kAllKeys; ++s) {
      int8_t* to = plan.k + (at * kAllKeys + s) * width;
      if (s >= keys) {
        std::memset(to, 0, width);
        plan.start[at * kAllKeys + s] = kAbsent;
        continue;
      }
      Ints sum = ZeroInts();
      for (int64_t h = 0; h < H; h += kLanes) {
        alignas(64) int8_t codes[kLanes];
        const Ints code = ToCodes(Sub(LoadUpTo(rows + s * H, h, H), LoadUpTo(room, h, H)), inverse);
        StoreInt8(codes, code);
        std::memcpy(to + h, codes, std::min<int64_t>(kLanes, width - h));
        sum = AddInts(sum, code);
      }
      plan.start[at * kAllKeys + s] = -128 * SumInts(sum);
    }
  }
}

// Head n's values into bytes.
inline void PackValues(const BytePlan& plan, int64_t n, const float* x) {
  const int64_t H = plan.head_dim, P = plan.patches, row = plan.row;
  float *mean = plan.mean + n * row, *channel = plan.channel + n * row;
  MeanRow(x, P, H, mean);
  for (int64_t h = 0; h < H; h += kLanes) {
    const Floats middle = Load(mean + h);
    Floats most = Zero();
    for (int64_t p = 0; p < P; ++p) most = Max(most, Abs(Sub(LoadUpTo(x + p * H, h, H), middle)));
    Store(channel + h, most);
  }
  for (int64_t b = 0; b < plan.blocks; ++b) {
    const int64_t keys = plan.KeysOf(b), at = n * plan.blocks + b;
    const float* rows = x + b * kAllKeys * H;
    Floats most = Zero();  // of what is left, as a part of the channel's largest
    const Floats tiny = Set(1e-30f);
    for (int64_t h = 0; h < H; h += kLanes) {
      Floats here = Zero();
      for (int64_t s = 0; s < keys; ++s) here = Max(here, Abs(Sub(LoadUpTo(rows + s * H, h, H), Load(mean + h))));
      most = Max(most, Div(here, Max(Load(channel + h), tiny)));
    }
    const float part = Largest(most);
    plan.v_scale[at] = part;
    const Floats by = Set(part > 0 ? 127.0f / part : 0.0f);
    for (int64_t s = 0; s < kAllKeys; s += 4) {
      int8_t* to = plan.v + (at * kAllKeys + s) * row;
      for (int64_t h = 0; h < row; h += kLanes) {
        const Floats inverse = Div(by, Max(Load(channel + h), tiny));
        Ints four = ZeroInts();
        for (int i = 0; i < 4 && s + i < keys; ++i) {
          const Floats left = Sub(LoadUpTo(rows + (s + i) * H, h, H), Load(mean + h));
          four = Or(four, ShiftLeft(And(ToCodesBy(left, inverse), SetInts(255)), 8 * i));
        }
        StoreInts(reinterpret_cast<int32_t*>(to + 4 * h), four);
      }
    }
  }
  for (int64_t h = 0; h < row; h += kLanes) Store(channel + h, Mul(Load(channel + h), Set(1.0f / 127.0f)));
}

// One tile's queries and what they have summed; arrays are [.., kTileQueries].
struct ByteTile {
  uint8_t* q;    // [steps], four bytes a query
  float* by;     // a query's scale, times the softmax's and log2 e
  float* best;   // largest score so far, in powers of 2
  float* total;  // sum of weights so far
  float* out;    // [row]
};

// A thread's memory.
struct ByteScratch {
  ByteTile tiles[kItemTiles];
  float* scores;     // [kAllKeys, kTileQueries]
  uint8_t* weights;  // [kAllGroups, kTileQueries, 4]

  static int64_t Floats4(int64_t H) {
    const int64_t row = BytePlan::Row(H);
    return kTileQueries * (kItemTiles * ((H + 3) / 4 + 3 + row) + kAllKeys + kAllGroups);
  }
  ByteScratch(float* memory, const BytePlan& plan) {
    const auto take = [&](int64_t rows) { return std::exchange(memory, memory + rows * kTileQueries); };
    for (ByteTile& tile : tiles)
      tile = {reinterpret_cast<uint8_t*>(take(plan.steps)), take(1), take(1), take(1), take(plan.row)};
    scores = take(kAllKeys);
    weights = reinterpret_cast<uint8_t*>(take(kAllGroups));
  }
};

// scores[i] = K[i] . q for kTileRows keys; `largest` [kTileQueries] brought up to date.
inline void ScoreByteRows(const int8_t* k, int64_t width, const int32_t* start, const uint8_t* q, int64_t steps,
                          float* scores, float* largest) {
  Ints acc[kTileRows][kQueryVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 16
    for (int n = 0; n < kQueryVectors; ++n) acc[i][n] = SetInts(start[i]);
  for (int64_t h = 0; h < steps; ++h) {
    Bytes query[kQueryVectors];
#pragma GCC unroll 16
    for (int n = 0; n < kQueryVectors; ++n) query[n] = LoadBytes(q + (h * kQueryVectors + n) * kLine);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const Bytes key = RepeatFour(k + i * width + 4 * h);
#pragma GCC unroll 16
      for (int n = 0; n < kQueryVectors; ++n) acc[i][n] = Dot4(acc[i][n], query[n], key);
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < kQueryVectors; ++n) {
    Floats most = Load(largest + n * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const Floats score = ToFloats(acc[i][n]);
      Store(scores + i * kTileQueries + n * kLanes, score);
      most = Max(most, score);
    }
    Store(largest + n * kLanes, most);
  }
}

// out[i] = out[i] * shrink + (sum over keys of V[key][i] * weights[key]) * grow for kCount rows of out; v: [groups][..][4],
// `stride` bytes between groups.
template <int kCount>
inline void AddByteRows(const int8_t* v, int64_t stride, int64_t groups, const uint8_t* weights, const float* shrink,
                        const float* grow, float* out) {
  Ints acc[kCount][kQueryVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i)
#pragma GCC unroll 16
    for (int n = 0; n < kQueryVectors; ++n) acc[i][n] = ZeroInts();
  for (int64_t s = 0; s < groups; ++s) {
    Bytes weight[kQueryVectors];
#pragma GCC unroll 16
    for (int n = 0; n < kQueryVectors; ++n) weight[n] = LoadBytes(weights + (s * kQueryVectors + n) * kLine);
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
      const Bytes value = RepeatFour(v + s * stride + 4 * i);
#pragma GCC unroll 16
      for (int n = 0; n < kQueryVectors; ++n) acc[i][n] = Dot4(acc[i][n], weight[n], value);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i)
#pragma GCC unroll 16
    for (int n = 0; n < kQueryVectors; ++n) {
      float* to = out + i * kTileQueries + n * kLanes;
      Store(to, MulAdd(ToFloats(acc[i][n]), Load(grow + n * kLanes), Mul(Load(to), Load(shrink + n * kLanes))));
    }
}

// Turns the scores of `keys` keys, a multiple of four, whose largest are given, into weights; brings the maximum up to
// date. What was summed before is to be multiplied by shrink, and what these weights sum up to by grow.
inline void ByteSoftmax(const ByteTile& tile, float k_scale, int64_t keys, const float* scores, const float* most,
                        uint8_t* weights, float* shrink, float* grow) {
  for (int64_t n = 0; n < kTileQueries; n += kLanes) {
    const Floats by = Mul(Load(tile.by + n), Set(k_scale));
    const Floats largest = Load(most + n), top = Set(7.99435343685886f);  // log2(255)
    for (int64_t s = 0; s < keys; s += 4) {
      Ints code[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Floats below = Sub(Load(scores + (s + i) * kTileQueries + n), largest);
        code[i] = ToInts(Exp2Coarse(MulAdd(below, by, top)));
      }
      StoreInts(reinterpret_cast<int32_t*>(weights) + s / 4 * kTileQueries + n, PackBytes(code[0], code[1], code[2], code[3]));
    }
    const Floats here = Mul(largest, by), before = Load(tile.best + n), best = Max(before, here), ln2 = Set(0.693147180559945f);
    Store(shrink + n, Exp(Mul(Sub(before, best), ln2)));
    Store(grow + n, Exp(Mul(Sub(here, best), ln2)));
    Store(tile.best + n, best);
  }
}

// Block b of head n for one tile. `valid`: [kAllKeys], 1 for keys that exist.
inline void AddByteBlock(const BytePlan& plan, int64_t n, int64_t b, const int8_t* valid, const ByteScratch& mine,
                         const ByteTile& tile) {
  const int64_t at = n * plan.blocks + b, width = 4 * plan.steps, keys = (plan.KeysOf(b) + kTileRows - 1) / kTileRows * kTileRows;
  const int8_t *k = plan.k + at * kAllKeys * width, *v = plan.v + at * kAllKeys * plan.row;
  alignas(64) float largest[kTileQueries], shrink[kTileQueries], grow[kTileQueries];
  for (float& each : largest) each = static_cast<float>(kAbsent);
  for (int64_t s = 0; s < keys; s += kTileRows) {
    const int32_t* start = plan.start + at * kAllKeys + s;
    ScoreByteRows(k + s * width, width, start, tile.q, plan.steps, mine.scores + s * kTileQueries, largest);
  }
  ByteSoftmax(tile, plan.k_scale[at], keys, mine.scores, largest, mine.weights, shrink, grow);
  AddByteRows<1>(valid, 4, keys / 4, mine.weights, shrink, grow, tile.total);
  for (int64_t i = 0; i < kTileQueries; i += kLanes) Store(grow + i, Mul(Load(grow + i), Set(plan.v_scale[at])));
  for (int64_t h = 0; h < plan.head_dim; h += kTileRows)
    AddByteRows<kTileRows>(v + 4 * h, 4 * plan.row, keys / 4, mine.weights, shrink, grow, tile.out + h * kTileQueries);
}

// Brings `count` queries, rows of H floats, into the tiles.
inline void LoadByteQueries(const BytePlan& plan, const float* q, int64_t count, float scale, const ByteScratch& mine) {
  const int64_t H = plan.head_dim;
  for (const ByteTile& tile : mine.tiles) {
    std::memset(tile.q, 128, plan.steps * kTileQueries * 4);
    std::memset(tile.out, 0, plan.row * kTileQueries * sizeof(float));
    for (int64_t i = 0; i < kTileQueries; ++i) tile.by[i] = 0.0f, tile.best[i] = kNoKeyYet, tile.total[i] = 0.0f;
  }
  for (int64_t i = 0; i < count; ++i) {
    const ByteTile& tile = mine.tiles[i / kTileQueries];
    const int64_t lane = i % kTileQueries;
    const float* from = q + i * H;
    Floats most = Zero();
    for (int64_t h = 0; h < H; h += kLanes) most = Max(most, Abs(LoadUpTo(from, h, H)));
    const float largest = Largest(most), inverse = largest > 0 ? 127.0f / largest : 0.0f;
    tile.by[lane] = largest * (1.0f / 127.0f) * scale * kLog2E;
    for (int64_t h = 0; h < H; h += kLanes) {
      alignas(64) int8_t codes[kLanes];
      StoreInt8(codes, ToCodes(LoadUpTo(from, h, H), inverse));
      for (int64_t j = 0; j < kLanes / 4 && h / 4 + j < plan.steps; ++j) {
        uint32_t four;
        std::memcpy(&four, codes + 4 * j, 4);
        four ^= 0x80808080u;
        std::memcpy(tile.q + ((h / 4 + j) * kTileQueries + lane) * 4, &four, 4);
      }
    }
  }
}

// Queries first .. of head n; the result takes the place that `out`, rows of H floats, gives them.
inline void AttendBytesItem(const BytePlan& plan, int64_t n, int64_t first, const float* q, float scale, float* out,
                            const ByteScratch& mine) {
  const int64_t H = plan.head_dim, count = std::min(kItemQueries, plan.patches - first);
  LoadByteQueries(plan, q + first * H, count, scale, mine);
  const int64_t tiles = (count + kTileQueries - 1) / kTileQueries;
  for (int64_t b = 0; b < plan.blocks; ++b) {
    alignas(64) int8_t valid[kAllKeys];
    for (int64_t s = 0; s < kAllKeys; ++s) valid[s] = s < plan.KeysOf(b);
    for (int64_t t = 0; t < tiles; ++t) AddByteBlock(plan, n, b, valid, mine, mine.tiles[t]);
  }
  for (int64_t t = 0; t < tiles; ++t)
    for (int64_t i = 0; i < kTileQueries; i += kLanes) {
      float* total = mine.tiles[t].total + i;
      Store(total, Div(Set(1.0f), Load(total)));
    }
  const float *channel = plan.channel + n * plan.row, *mean = plan.mean + n * plan.row;
  for (int64_t i = 0; i < count; ++i) {
    const ByteTile& tile = mine.tiles[i / kTileQueries];
    const int64_t lane = i % kTileQueries;
    float* to = out + (first + i) * H;
    for (int64_t h = 0; h < H; ++h) to[h] = tile.out[h * kTileQueries + lane] * tile.total[lane] * channel[h] + mean[h];
  }
}

inline int64_t QueryGroups(int64_t P) { return (P + kItemQueries - 1) / kItemQueries; }

// Item i of 2 N: packs the keys or the values of one head.
inline void PackItem(const BytePlan& plan, int64_t i, const float* k, const float* v) {
  const int64_t n = i / 2, at = n * plan.patches * plan.head_dim;
  if (i % 2) return PackValues(plan, n, v + at);
  thread_local Scratch room;
  PackKeys(plan, n, k + at, room.Get(plan.row));
}

inline void AttendAllInBytes(const AttendAllArguments& g, Pool& pool, uint8_t* workspace) {
  const BytePlan plan(workspace, g.heads, g.patches, g.head_dim);
  const int64_t groups = QueryGroups(g.patches), size = g.patches * g.head_dim;
  Phase pack(2 * g.heads), items(g.heads * groups);
  pool.Run([&](int) {
    pack.Share([&](int64_t i) { PackItem(plan, i, g.k, g.v); });
    thread_local Scratch own;
    const ByteScratch mine(own.Get(ByteScratch::Floats4(g.head_dim)), plan);
    items.Share([&](int64_t i) {
      const int64_t n = i / groups;
      AttendBytesItem(plan, n, i % groups * kItemQueries, g.q + n * size, g.scale, g.out + n * size, mine);
    });
  });
}

int64_t AttendAllWorkspace(const AttendAllArguments& g) {
  return g.exact ? 0 : BytePlan::Bytes(g.heads, g.patches, g.head_dim);
}

void AttendAll(const AttendAllArguments& g, Pool& pool, uint8_t* workspace) {
  if (g.exact) return AttendAllExactly(g, pool);
  AttendAllInBytes(g, pool, workspace);
}
