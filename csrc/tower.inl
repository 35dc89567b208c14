// One layer of the vision tower in bytes: LayerNorms, six biased products, GELU, residuals and attention. Included by
// kernels_<isa>.cc after attend_all_int8.inl.
//
//     rows       64 patches: norm, round | q, k, v + bias            -> [N, P, H] each, one head's rows together
//     pack       one head: keys, or values, in bytes                  (attend_all_int8.inl)
//     attend     one head, 128 queries: out in the place of its own q
//     rows       64 patches: gather heads, round | o + bias + x | norm, round
//                | 64 columns of up + bias, GELU, round | ... | down + bias + residual
//
// Everything between two attentions happens while its 64 patches are in L2: 74 KB of codes, 295 KB of fp32 rows, 278 KB
// of hidden codes. The layer's 15 MB of weights pass by once for 64 patches, 15.2 M bytes against 15 M cycles of Dot4:
// one byte a cycle and core, from L3 or at 3.7 GB/s from memory; the pair of panels that is multiplied next is asked for
// meanwhile. 64 patches also divide 4,096 evenly among up to 64 threads.
//
// Activations: int8, a scale for each 64 columns of a row (a unit of layout.h). Weights: Format::kInt8, a scale a row.
// Tile: 6 rows x 2 panels (AVX-512), as in linear.inl, but one conversion and one multiply-add for 16 Dot4 instead of 8:
// at most 16/17 of the Dot4 peak where they share ports.

constexpr int64_t kTowerRows = 64;

// Rows of activations in bytes, padded to units.
struct UnitRows {
  int64_t padded, units;
  int8_t* codes;   // [rows, padded]
  float* scale;    // [rows, units]
  int32_t* start;  // [rows, units]: -128 * the unit's sum of codes

  static int64_t Bytes(int64_t rows, int64_t cols) {
    return Aligned(rows * Units(cols) * kUnit) + 2 * Aligned(rows * Units(cols) * 4);
  }
  UnitRows(uint8_t* memory, int64_t rows, int64_t cols) : padded(Units(cols) * kUnit), units(Units(cols)) {
    codes = reinterpret_cast<int8_t*>(memory);
    memory += Aligned(rows * padded);
    scale = reinterpret_cast<float*>(memory);
    memory += Aligned(rows * units * 4);
    start = reinterpret_cast<int32_t*>(memory);
  }

  // Rounds unit u of row t from four vectors.
  void Set64(int64_t t, int64_t u, const Floats* x) const {
    const Floats most = Max(Max(Abs(x[0]), Abs(x[1])), Max(Abs(x[2]), Abs(x[3])));
    const float largest = Largest(most), inverse = largest > 0 ? 127.0f / largest : 0.0f;
    Ints sum = ZeroInts();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Ints code = ToCodes(x[i], inverse);
      StoreInt8(codes + t * padded + u * kUnit + i * kLanes, code);
      sum = AddInts(sum, code);
    }
    scale[t * units + u] = largest * (1.0f / 127.0f);
    start[t * units + u] = -128 * SumInts(sum);
  }

  // Rounds row t of `cols` floats, a multiple of 16.
  void SetRow(int64_t t, const float* x, int64_t cols) const {
    for (int64_t u = 0; u < units; ++u) {
      Floats four[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const int64_t at = u * kUnit + i * kLanes;
        four[i] = at < cols ? Load(x + at) : Zero();
      }
      Set64(t, u, four);
    }
  }
};

// Where a product goes: out[row] = sum * scale + bias, plus add[row] where there is one.
struct Sink {
  const float* bias;
  const float* add;
  float* out;
  int64_t stride;  // of add and out
};

// Rows t0 .. of P panels, the first at `panel`, whose first output is column `col` of the sink.
template <int T, int P>
void UnitTile(const UnitRows& a, int64_t t0, const uint8_t* panel, int64_t panel_bytes, Ahead ahead, int64_t col,
              const Sink& sink) {
  const int8_t* codes = a.codes + t0 * a.padded;
  const int32_t* start = a.start + t0 * a.units;
  const float* scale = a.scale + t0 * a.units;
  Floats sum[T][P];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) sum[t][p] = Zero();
  for (int64_t u = 0; u < a.units; ++u) {
    const uint8_t* unit = panel + u * UnitBytes(Format::kInt8);
    for (int64_t at = 0; at < ahead.step; at += kLine) PrefetchL2(ahead.from + u * ahead.step + at);
    Ints dot[T][P];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      const Ints from = SetInts(start[t * a.units + u]);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) dot[t][p] = from;
    }
#pragma GCC unroll 16
    for (int line = 0; line < 16; ++line) {
      Bytes w[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) w[p] = LoadBytes(unit + p * panel_bytes + line * kLine);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        const Bytes x = RepeatFour(codes + t * a.padded + u * kUnit + 4 * line);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) dot[t][p] = Dot4(dot[t][p], w[p], x);
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      const Floats by = Set(scale[t * a.units + u]);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) sum[t][p] = MulAdd(ToFloats(dot[t][p]), by, sum[t][p]);
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    const Floats of_row = Load(reinterpret_cast<const float*>(panel + p * panel_bytes + a.units * UnitBytes(Format::kInt8)));
    const int64_t at = col + p * kRows;
    const Floats bias = Load(sink.bias + at);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      const int64_t to = (t0 + t) * sink.stride + at;
      Floats y = MulAdd(sum[t][p], of_row, bias);
      if (sink.add) y = Add(Load(sink.add + to), y);
      Store(sink.out + to, y);
    }
  }
}

template <int T>
void UnitPanels(const UnitRows& a, int64_t t0, const uint8_t* panel, int64_t panel_bytes, int panels, Ahead ahead,
                int64_t col, const Sink& sink) {
  if constexpr (kTilePanels == 2) {
    if (panels == 2) return UnitTile<T, 2>(a, t0, panel, panel_bytes, ahead, col, sink);
  }
  for (int p = 0; p < panels; ++p) UnitTile<T, 1>(a, t0, panel + p * panel_bytes, panel_bytes, ahead, col + p * kRows, sink);
}

// `panels` (1 or 2) panels of m, the first number `first`, times rows 0 .. count - 1. `col`: of the sink.
inline void MultiplyUnits(const UnitRows& a, const Matrix& m, int64_t first, int panels, int64_t count, int64_t col,
                          const Sink& sink) {
  using Function = void (*)(const UnitRows&, int64_t, const uint8_t*, int64_t, int, Ahead, int64_t, const Sink&);
  static constexpr Function kTiles[] = {UnitPanels<1>, UnitPanels<2>, UnitPanels<3>, UnitPanels<4>, UnitPanels<5>, UnitPanels<6>};
  const int64_t bytes = PanelBytes(m.format, m.cols), tiles = (count + kTileTokens - 1) / kTileTokens;
  // What is asked for past the matrix's last panel is a little of what follows it, or of nothing: no harm.
  const int64_t step = (2 * bytes + tiles * a.units * kLine - 1) / (tiles * a.units * kLine) * kLine;
  const uint8_t* panel = m.data + first * bytes;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t t = i * count / tiles, rows = (i + 1) * count / tiles - t;
    const Ahead ahead{panel + panels * bytes + i * a.units * step, step};
    kTiles[rows - 1](a, t, panel, bytes, panels, ahead, col, sink);
  }
}

inline void MultiplyAll(const UnitRows& a, const Biased& w, int64_t count, const float* add, float* out, int64_t stride) {
  const Sink sink{w.bias, add, out, stride};
  const int64_t panels = Panels(w.weight->rows);
  for (int64_t p = 0; p < panels; p += 2)
    MultiplyUnits(a, *w.weight, p, static_cast<int>(std::min<int64_t>(2, panels - p)), count, p * kRows, sink);
}

// to = LayerNorm(x) of n floats, a multiple of 16.
inline void LayerNorm(const float* x, Normed norm, int64_t n, float eps, float* to) {
  Floats sum = Zero(), squares = Zero();
  for (int64_t i = 0; i < n; i += kLanes) sum = Add(sum, Load(x + i));
  const Floats mean = Set(Sum(sum) / static_cast<float>(n));
  for (int64_t i = 0; i < n; i += kLanes) {
    const Floats centred = Sub(Load(x + i), mean);
    squares = MulAdd(centred, centred, squares);
  }
  const Floats inverse = Set(1.0f / std::sqrt(Sum(squares) / static_cast<float>(n) + eps));
  for (int64_t i = 0; i < n; i += kLanes) {
    Store(to + i, MulAdd(Mul(Sub(Load(x + i), mean), inverse), Load(norm.weight + i), Load(norm.bias + i)));
  }
}

// A thread's memory for 64 patches.
struct TowerScratch {
  UnitRows normed, hidden;
  float *row, *rows, *part;  // [max(D, ..)], [64, D], [64, 64]

  static int64_t Floats4(int64_t D, int64_t F) {
    return (UnitRows::Bytes(kTowerRows, D) + UnitRows::Bytes(kTowerRows, F)) / 4 + D + kTowerRows * D + kTowerRows * kUnit;
  }
  TowerScratch(float* memory, int64_t D, int64_t F)
      : normed(reinterpret_cast<uint8_t*>(memory), kTowerRows, D),
        hidden(reinterpret_cast<uint8_t*>(memory) + UnitRows::Bytes(kTowerRows, D), kTowerRows, F),
        row(memory + (UnitRows::Bytes(kTowerRows, D) + UnitRows::Bytes(kTowerRows, F)) / 4), rows(row + D),
        part(rows + kTowerRows * D) {}
};

// q, k, v of patches first .. , each head's rows together.
inline void TowerHeads(const TowerArguments& g, int64_t first, const TowerScratch& mine) {
  const int64_t P = g.patches, D = g.width, H = D / g.heads, count = std::min(kTowerRows, P - first);
  for (int64_t t = 0; t < count; ++t) {
    LayerNorm(g.x + (first + t) * D, g.attn_norm, D, g.eps, mine.row);
    mine.normed.SetRow(t, mine.row, D);
  }
  const Biased* products[] = {&g.q, &g.k, &g.v};
  for (int i = 0; i < 3; ++i) {
    MultiplyAll(mine.normed, *products[i], count, nullptr, mine.rows, D);
    for (int64_t n = 0; n < g.heads; ++n)
      for (int64_t t = 0; t < count; ++t)
        std::memcpy(g.heads_room + ((i * g.heads + n) * P + first + t) * H, mine.rows + t * D + n * H, H * sizeof(float));
  }
}

// What follows attention, for patches first .. .
inline void TowerTail(const TowerArguments& g, int64_t first, const TowerScratch& mine) {
  const int64_t P = g.patches, D = g.width, H = D / g.heads, count = std::min(kTowerRows, P - first);
  float* out = g.out + first * D;
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t n = 0; n < g.heads; ++n)
      std::memcpy(mine.row + n * H, g.heads_room + (n * P + first + t) * H, H * sizeof(float));
    mine.normed.SetRow(t, mine.row, D);
  }
  MultiplyAll(mine.normed, g.o, count, g.x + first * D, out, D);
  for (int64_t t = 0; t < count; ++t) {
    LayerNorm(out + t * D, g.ffw_norm, D, g.eps, mine.row);
    mine.normed.SetRow(t, mine.row, D);
  }
  const int64_t panels = Panels(g.hidden);
  for (int64_t u = 0; u < mine.hidden.units; ++u) {
    // The part's columns are those of the bias from 64 u on.
    const Sink sink{g.up.bias + u * kUnit, nullptr, mine.part, kUnit};
    const int64_t end = std::min<int64_t>(4 * u + 4, panels);
    for (int64_t p = 4 * u; p < end; p += 2) {
      MultiplyUnits(mine.normed, *g.up.weight, p, static_cast<int>(std::min<int64_t>(2, end - p)), count, (p - 4 * u) * kRows, sink);
    }
    for (int64_t t = 0; t < count; ++t) {
      Floats four[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) four[i] = 4 * u + i < end ? GeluTanh(Load(mine.part + t * kUnit + i * kLanes)) : Zero();
      mine.hidden.Set64(t, u, four);
    }
  }
  MultiplyAll(mine.hidden, g.down, count, out, out, D);
}

void TowerLayer(const TowerArguments& g, Pool& pool, uint8_t* workspace) {
  const int64_t P = g.patches, D = g.width, H = D / g.heads, groups = QueryGroups(P), size = P * H;
  const BytePlan plan(workspace, g.heads, P, H);
  float *q = g.heads_room, *k = q + P * D, *v = k + P * D;
  const float scale = 1.0f / std::sqrt(static_cast<float>(H));
  Phase heads((P + kTowerRows - 1) / kTowerRows), pack(2 * g.heads), attend(g.heads * groups);
  Phase tail((P + kTowerRows - 1) / kTowerRows);
  pool.Run([&](int) {
    thread_local Scratch own;
    float* memory = own.Get(std::max(TowerScratch::Floats4(D, g.hidden), ByteScratch::Floats4(H)));
    const TowerScratch rows(memory, D, g.hidden);
    const ByteScratch tiles(memory, plan);
    heads.Share([&](int64_t i) { TowerHeads(g, i * kTowerRows, rows); });
    pack.Share([&](int64_t i) { PackItem(plan, i, k, v); });
    attend.Share([&](int64_t i) {
      const int64_t n = i / groups;
      AttendBytesItem(plan, n, i % groups * kItemQueries, q + n * size, scale, q + n * size, tiles);
    });
    tail.Share([&](int64_t i) { TowerTail(g, i * kTowerRows, rows); });
  });
}

int64_t TowerWorkspace(const TowerArguments& g) { return BytePlan::Bytes(g.heads, g.patches, g.width / g.heads); }
