// y = x W^T for a packed W: tiles of tokens x panels whose sums stay in registers.
//
// One line of a panel is 16 rows x 4 columns; one Dot4 multiplies it with 4 activations repeated for all rows:
//
//     line      r0: w0 w1 w2 w3 | r1: w0 w1 w2 w3 | ... r15          u8, memory or unpacked nibbles
//     repeated  a0 a1 a2 a3     | a0 a1 a2 a3     | ...              s8, one 4-byte broadcast
//     sums      r0 += ...       | r1 += ...       | ...              s32: a row per lane, no sum across lanes ever
//
// Integer sums run over one block of 32 columns and start from -offset * (sum of the block's activations), because
// codes are stored unsigned. Then float += (float) sum * (weight scale * activation scale), blocks in ascending order:
// a token's result is the same bits in any tile, batch and thread.
//
// Ceilings. One token is bound by memory: 0.5625 bytes a weight in int4-b32. Many are bound by Dot4: a block costs 8 of
// them a token and panel, and beside them one conversion, one product and one multiply-add, so at most 8/10 of the
// Dot4 peak where those share ports with it (Zen 4: Dot4 and multiplications one zmm a cycle).
// Tile: 6 tokens x 2 panels in AVX-512 need 12 integer and 12 float sums, 4 weight lines and an activation: 29 of 32
// registers. Two panels share a broadcast; six tokens share a line's load and its unpacking.
// GCC keeps arrays of vectors in memory unless every loop over them is unrolled: hence the pragmas.

// One or two tokens are bound by memory, and what counts is streams that the hardware prefetches well. Panels shorter than
// kShortPanel are read one after the other, a single stream across panels; longer ones two at once. Nothing is asked for
// ahead: 1 or 4 KiB or a whole pair of panels were within 5 % for int4-b32 and 30 % slower for int8 (EPYC 9004).
//
// From three tokens on a block is some hundred instructions and more, of which the processor sees one or two blocks
// ahead: it waits for memory at the start of every page, where the hardware's prefetch starts anew, and memory time and
// arithmetic add up. So while a pair of panels is multiplied the next pair is brought into the second cache, a share with
// each tile of tokens. Cycles a block of two panels, int4-b32, weights from memory, one thread (EPYC 9004):
//
//     tokens                    4     6     8    12    16
//     without                 169   220   258   343   437      1,152 columns
//     the next pair            88   126   168   250   335
//     weights in L2            82   122   165   242   323
constexpr int kFewTokens = 2;
constexpr int64_t kShortPanel = 24 * 1024;
// With more tokens than this an item takes so much longer than its memory that its own start does not count.
constexpr int64_t kManyTokens = 64;
inline bool LooksAhead(int64_t tokens) { return tokens > kFewTokens && tokens <= kManyTokens; }

// Memory that is read after what is read now: asked for on the way, `step` bytes with every unit of columns.
struct Ahead {
  const uint8_t* from = nullptr;
  int64_t step = 0;
};

template <Format kFormat, int T, int P>
inline __attribute__((always_inline)) void IntegerTile(const Activations& a, int64_t t0, const uint8_t* panel,
                                                       int64_t panel_bytes, Ahead ahead, float* out,
                                                       int64_t out_stride) {
  constexpr bool kNibbles = kFormat == Format::kInt4B32 || kFormat == Format::kInt4;
  constexpr bool kBlockScales = HasBlockScales(kFormat);
  constexpr int kLinesABlock = kNibbles ? 4 : 8;
  const int64_t units = a.padded / kUnit;
  const int8_t* codes = a.codes + t0 * a.padded;
  const int32_t* start = (kNibbles ? a.start4 : a.start8) + t0 * a.blocks;
  const float* scale = a.scale + t0 * a.blocks;

  Floats sum[T][P];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) sum[t][p] = Zero();
  }
  for (int64_t u = 0; u < units; ++u) {
    const uint8_t* unit = panel + u * UnitBytes(kFormat);
    if (T > kFewTokens) {
      for (int64_t line = 0; line < ahead.step; line += kLine) PrefetchL2(ahead.from + u * ahead.step + line);
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const int64_t b = 2 * u + half;
      const int8_t* four = codes + b * kBlock;
      Ints dot[T][P];
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        const Ints from = SetInts(start[t * a.blocks + b]);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) dot[t][p] = from;
      }
#pragma GCC unroll 8
      for (int line = 0; line < kLinesABlock; ++line) {
        Bytes w[P], high[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          w[p] = LoadBytes(unit + p * panel_bytes + (half * kLinesABlock + line) * kLine);
          if (kNibbles) {
            high[p] = HighNibbles(w[p]);
            w[p] = LowNibbles(w[p]);
          }
        }
#pragma GCC unroll 16
        for (int t = 0; t < T; ++t) {
          const Bytes x = RepeatFour(four + t * a.padded + 4 * line);
#pragma GCC unroll 4
          for (int p = 0; p < P; ++p) dot[t][p] = Dot<kNibbles>(dot[t][p], w[p], x);
          if (kNibbles) {
            const Bytes y = RepeatFour(four + t * a.padded + 16 + 4 * line);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) dot[t][p] = Dot<kNibbles>(dot[t][p], high[p], y);
          }
        }
      }
      Floats weight_scale[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        const uint8_t* at = unit + p * panel_bytes + CodeLines(kFormat) * kLine + half * 32;
        weight_scale[p] = kBlockScales ? LoadFp16(reinterpret_cast<const uint16_t*>(at)) : Zero();
      }
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        const Floats x_scale = Set(scale[t * a.blocks + b]);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          const Floats factor = kBlockScales ? Mul(weight_scale[p], x_scale) : x_scale;
          sum[t][p] = MulAdd(ToFloats(dot[t][p]), factor, sum[t][p]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      if (!kBlockScales) {
        const uint8_t* at = panel + p * panel_bytes + units * UnitBytes(kFormat);
        sum[t][p] = Mul(sum[t][p], Load(reinterpret_cast<const float*>(at)));
      }
      Store(out + t * out_stride + p * kRows, sum[t][p]);
    }
  }
}

// Sixteen sfp8 codes, each in the top byte of its lane, as floats (ops/xla/quant.py, sfp8_values).
inline Floats FromSfp8(Ints top) {
  const Ints c = And(top, SetInts(0x7f000000));
  const Ints small = AddInts(ShiftRight(c, 3), SetInts((127 - 23) << 23));
  const Ints large = AddInts(ShiftRight(c, 4), SetInts((127 - 15) << 23));
  const Ints magnitude = IfGreater(c, SetInts(0x3fffffff), large, IfGreater(c, ZeroInts(), small, ZeroInts()));
  return AsFloats(Or(magnitude, And(top, SetInts(INT32_MIN))));
}

// One panel in a format whose weights are floats. Bound by the conversions, not by memory.
template <Format kFormat, int T>
inline void FloatTile(const Activations& a, int64_t t0, const uint8_t* panel, float* out, int64_t out_stride) {
  constexpr int kColumns = kFormat == Format::kBf16 ? 2 : 4;  // of a line
  const int64_t lines = a.padded / kColumns;
  const float* x = a.x + t0 * a.padded;
  Floats sum[T];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) sum[t] = Zero();
  for (int64_t line = 0; line < lines; ++line) {
    const Ints bits = LoadInts(reinterpret_cast<const int32_t*>(panel + line * kLine));
    Floats w[kColumns];
    if (kFormat == Format::kBf16) {
      w[0] = AsFloats(ShiftLeft(bits, 16));
      w[1] = AsFloats(And(bits, SetInts(static_cast<int32_t>(0xffff0000u))));
    } else {
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) w[c] = FromSfp8(And(ShiftLeft(bits, 24 - 8 * c), SetInts(static_cast<int32_t>(0xff000000u))));
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) sum[t] = MulAdd(w[c], Set(x[t * a.padded + line * kColumns + c]), sum[t]);
    }
  }
  if (kFormat == Format::kSfp8) {
    const Floats scale = Load(reinterpret_cast<const float*>(panel + lines * kLine));
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) sum[t] = Mul(sum[t], scale);
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) Store(out + t * out_stride, sum[t]);
}

// Tokens t0 .. t0 + T - 1 of `panels` panels, one or two.
template <Format kFormat, int T>
void PanelsTile(const Activations& a, int64_t t0, const uint8_t* panel, int64_t panel_bytes, int panels,
                [[maybe_unused]] Ahead ahead, float* out, int64_t out_stride) {
  if constexpr (!IsInteger(kFormat)) {
    for (int p = 0; p < panels; ++p) FloatTile<kFormat, T>(a, t0, panel + p * panel_bytes, out + p * kRows, out_stride);
  } else {
    if constexpr (kTilePanels == 2) {
      const bool one_by_one = T <= kFewTokens && panel_bytes < kShortPanel;
      if (panels == 2 && !one_by_one) return IntegerTile<kFormat, T, 2>(a, t0, panel, panel_bytes, ahead, out, out_stride);
    }
    for (int p = 0; p < panels; ++p) {
      IntegerTile<kFormat, T, 1>(a, t0, panel + p * panel_bytes, panel_bytes, ahead, out + p * kRows, out_stride);
    }
  }
}

using TileFunction = void (*)(const Activations&, int64_t, const uint8_t*, int64_t, int, Ahead, float*, int64_t);

template <Format kFormat>
TileFunction TileOf(int tokens) {
  static constexpr TileFunction kTiles[] = {
      PanelsTile<kFormat, 1>, PanelsTile<kFormat, 2>, PanelsTile<kFormat, 3>,
      PanelsTile<kFormat, 4>, PanelsTile<kFormat, 5>, PanelsTile<kFormat, 6>,
  };
  return kTiles[tokens - 1];
}

// The tile of a format for 1 .. kTileTokens tokens.
inline TileFunction TileOf(Format format, int tokens) {
  switch (format) {
    case Format::kInt4B32: return TileOf<Format::kInt4B32>(tokens);
    case Format::kInt4: return TileOf<Format::kInt4>(tokens);
    case Format::kInt8B32: return TileOf<Format::kInt8B32>(tokens);
    case Format::kInt8: return TileOf<Format::kInt8>(tokens);
    case Format::kSfp8: return TileOf<Format::kSfp8>(tokens);
    case Format::kBf16: return TileOf<Format::kBf16>(tokens);
  }
  return nullptr;
}

// The panels that are multiplied after these, to be asked for meanwhile.
struct Next {
  const uint8_t* data = nullptr;
  int64_t bytes = 0;

  Next() = default;
  Next(const Matrix& m, int64_t first, int64_t panels)
      : data(m.data + first * PanelBytes(m.format, m.cols)), bytes(panels * PanelBytes(m.format, m.cols)) {}
};

// Rows 16 * first .. of `panels` (1 or 2) panels of m for tokens t0 .. t0 + tokens - 1 into out[token - t0][row].
inline void MultiplyPanels(const Activations& a, const Matrix& m, int64_t first, int panels, int64_t t0, int64_t tokens,
                           float* out, int64_t out_stride, Next next = {}) {
  if (tokens == 0) return;
  const int64_t panel_bytes = PanelBytes(m.format, m.cols);
  const uint8_t* panel = m.data + first * panel_bytes;
  // Tiles of nearly equal height: eight tokens are 4 + 4, not 6 + 2, whose second tile would be mostly overhead.
  const int64_t tiles = (tokens + kTileTokens - 1) / kTileTokens, units = Units(m.cols);
  const int64_t lines = (next.bytes + kLine - 1) / kLine, step = (lines + tiles * units - 1) / (tiles * units) * kLine;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t t = tile * tokens / tiles;
    const int count = static_cast<int>((tile + 1) * tokens / tiles - t);
    // What is asked for past the last of `next` is a few lines of what follows it, or of nothing: no harm.
    const int64_t begin = tile * units * step;
    const Ahead ahead{next.data + begin, begin < next.bytes ? step : 0};
    TileOf(m.format, count)(a, t0 + t, panel, panel_bytes, panels, ahead, out + t * out_stride, out_stride);
  }
}

// A product whose output is [rows of a, m.rows] floats, in pairs of panels. Rows past m.rows are computed and not written.
struct Product {
  const Activations* a;
  Matrix m;
  float* out;

  int64_t pairs() const { return (Panels(m.rows) + 1) / 2; }
  int64_t PanelsOf(int64_t pair) const { return std::min<int64_t>(2, Panels(m.rows) - 2 * pair); }

  void Pair(int64_t pair, Next next) const {
    const int64_t first = 2 * pair, row = first * kRows;
    const int panels = static_cast<int>(PanelsOf(pair));
    if (row + panels * kRows <= m.rows) {
      MultiplyPanels(*a, m, first, panels, 0, a->rows, out + row, m.rows, next);
      return;
    }
    float part[kTileTokens * 2 * kRows];  // the last rows of a matrix whose height is no multiple of 16
    for (int64_t t = 0; t < a->rows; t += kTileTokens) {
      const int64_t count = std::min<int64_t>(kTileTokens, a->rows - t);
      MultiplyPanels(*a, m, first, panels, t, count, part, 2 * kRows);
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(out + (t + i) * m.rows + row, part + i * 2 * kRows, (m.rows - row) * sizeof(float));
      }
    }
  }
};

// How `all` pairs of panels are cut into items of a phase: a large one for each thread, half of the work together, and
// small ones that even out. Few large ones because every item is a new stream from memory, which starts slowly.
struct Cut {
  int64_t all, large, small, threads;

  Cut(int64_t all_, int threads_) : all(all_), threads(threads_) {
    large = threads == 1 ? all : all / (2 * threads);
    small = std::max<int64_t>(1, (all - large * threads) / (8 * threads));
  }
  int64_t items() const { return threads + (all - large * threads + small - 1) / small; }
  int64_t begin(int64_t item) const {
    return item < threads ? item * large : std::min(all, threads * large + (item - threads) * small);
  }
  int64_t end(int64_t item) const { return begin(item + 1); }
};

// Several products of the same tokens as one phase.
struct Products {
  const Product* products;
  Cut cut;

  static int64_t Pairs(const Product* products, int count) {
    int64_t all = 0;
    for (int i = 0; i < count; ++i) all += products[i].pairs();
    return all;
  }
  Products(const Product* products_, int count, int threads) : products(products_), cut(Pairs(products_, count), threads) {}

  // The product that a pair belongs to, and its number there.
  std::pair<const Product*, int64_t> At(int64_t pair) const {
    const Product* product = products;
    for (; pair >= product->pairs(); ++product) pair -= product->pairs();
    return {product, pair};
  }

  // next_item: the one this thread does afterwards, or -1.
  void operator()(int64_t item, int64_t next_item) const {
    for (int64_t pair = cut.begin(item); pair < cut.end(item); ++pair) {
      const auto [product, local] = At(pair);
      const int64_t then = pair + 1 < cut.end(item) ? pair + 1 : next_item < 0 ? -1 : cut.begin(next_item);
      Next next;
      if (then >= 0) {
        const auto [to, at] = At(then);
        next = Next(to->m, 2 * at, to->PanelsOf(at));
      }
      product->Pair(local, next);
    }
  }
};

// y = x W^T: the plain product, x as it is.
void Linear(const LinearArguments& arguments, Pool& pool, uint8_t* workspace) {
  const Activations a(workspace, arguments.tokens, arguments.weight.cols);
  Wanted wanted;
  wanted.Add(arguments.weight.format);
  const Product product{&a, arguments.weight, arguments.y};
  const Products multiply(&product, 1, pool.size());
  Phase rows(a.rows), panels(multiply.cut.items());
  pool.Run([&](int) {
    rows.Share([&](int64_t t) { PrepareRow(a, t, arguments.x + t * a.cols, nullptr, 0, wanted); });
    panels.ShareAhead(LooksAhead(a.rows), multiply);
  });
}

int64_t LinearWorkspace(const LinearArguments& arguments) {
  return Activations::Bytes(arguments.tokens, arguments.weight.cols);
}
