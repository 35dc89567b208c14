// The head and what is wanted of its logits, in one pass; and the lookup in the same table.
//
// 262,144 logits a token are 1 MiB that nobody needs: what samples wants the largest few and, for log-probabilities,
// ln sum e^logit. Each thread keeps its own `top` largest (a heap with the smallest on top; a logit that beats it is
// rare: about top * ln(V / top) times), and a maximum and a sum for every chunk of panels. Chunks are of a fixed size
// and merged in order, candidates are ordered by value and then id: the result does not depend on the threads.
//
// Ceiling: the bytes of the table (302 MB for 1B in int8); the exponentials cost 3 % of it there.

struct Candidate {
  float value;
  int32_t id;
};

// Whether a ranks before b: a larger logit, or the same and a smaller id.
inline bool RanksBefore(const Candidate& a, const Candidate& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

constexpr int64_t kChunkPanels = 64;             // 1,024 rows
constexpr int64_t kHeadTokens = 8 * kTileTokens;  // whose logits of two panels lie in L1

inline int64_t HeadChunks(const HeadArguments& g) { return (Panels(g.vocab) + kChunkPanels - 1) / kChunkPanels; }

struct ChunkTotal {
  float largest, sum;  // sum of e^(logit - largest)
};

// Offers 16 logits of rows id .. id + 15, of which the first `count` exist, to a heap of `size` of `top` candidates.
inline void Offer(const float* logits, int32_t id, int count, Candidate* heap, int64_t* size, int64_t top) {
  uint32_t better = *size < top ? 0xffffu : Greater(Load(logits), Set(heap[0].value));
  better &= (1u << count) - 1;
  for (; better != 0; better &= better - 1) {
    const int lane = __builtin_ctz(better);
    const Candidate candidate{logits[lane], id + lane};
    if (*size < top) {
      heap[(*size)++] = candidate;
      std::push_heap(heap, heap + *size, RanksBefore);
    } else if (RanksBefore(candidate, heap[0])) {
      std::pop_heap(heap, heap + top, RanksBefore);
      heap[top - 1] = candidate;
      std::push_heap(heap, heap + top, RanksBefore);
    }
  }
}

// Logits of one chunk for every token: into the thread's heaps and the chunk's totals.
inline void HeadChunk(const HeadArguments& g, const Activations& a, int64_t chunk, int64_t next_chunk, Candidate* heaps,
                      int64_t* sizes, ChunkTotal* totals) {
  alignas(64) float logits[kHeadTokens * 2 * kRows];
  const int64_t end = std::min((chunk + 1) * kChunkPanels, Panels(g.vocab));
  for (int64_t t = 0; t < g.tokens; ++t) totals[chunk * g.tokens + t] = {-INFINITY, 0.0f};
  for (int64_t panel = chunk * kChunkPanels; panel < end; panel += 2) {
    const int panels = static_cast<int>(std::min<int64_t>(2, end - panel));
    const int64_t then = panel + 2 < end ? panel + 2 : next_chunk < 0 ? -1 : next_chunk * kChunkPanels;
    Next next;
    if (then >= 0) next = Next(g.weight, then, std::min<int64_t>(2, Panels(g.vocab) - then));
    for (int64_t t0 = 0; t0 < g.tokens; t0 += kHeadTokens) {
      const int64_t tokens = std::min<int64_t>(kHeadTokens, g.tokens - t0);
      MultiplyPanels(a, g.weight, panel, panels, t0, tokens, logits, 2 * kRows, t0 == 0 ? next : Next());
      for (int64_t i = 0; i < tokens; ++i) {
        ChunkTotal& total = totals[chunk * g.tokens + t0 + i];
        for (int p = 0; p < panels; ++p) {
          float* row = logits + i * 2 * kRows + p * kRows;
          const int64_t id = (panel + p) * kRows;
          const int count = static_cast<int>(std::min<int64_t>(kRows, g.vocab - id));
          for (int64_t lane = count; lane < kRows; ++lane) row[lane] = -INFINITY;
          if (g.with_total) {
            const Floats values = Load(row);
            const float largest = std::max(total.largest, Largest(values));
            total.sum = total.sum * std::exp(total.largest - largest) + Sum(Exp(Sub(values, Set(largest))));
            total.largest = largest;
          }
          Offer(row, static_cast<int32_t>(id), count, heaps + (t0 + i) * g.top, sizes + t0 + i, g.top);
        }
      }
    }
  }
}

// Joins the threads' heaps and the chunks' totals of token t.
inline void HeadMerge(const HeadArguments& g, int64_t t, int threads, Candidate* heaps, const int64_t* sizes,
                      const ChunkTotal* totals, Candidate* all) {
  int64_t count = 0;
  for (int thread = 0; thread < threads; ++thread) {
    const Candidate* heap = heaps + (thread * g.tokens + t) * g.top;
    count = std::copy(heap, heap + sizes[thread * g.tokens + t], all + count) - all;
  }
  std::partial_sort(all, all + g.top, all + count, RanksBefore);
  for (int64_t i = 0; i < g.top; ++i) {
    g.values[t * g.top + i] = all[i].value;
    g.ids[t * g.top + i] = all[i].id;
  }
  g.log_total[t] = 0;
  if (!g.with_total) return;
  double sum = 0;
  for (int64_t chunk = 0; chunk < HeadChunks(g); ++chunk) {
    const ChunkTotal& total = totals[chunk * g.tokens + t];
    sum += total.sum * std::exp(static_cast<double>(total.largest - all[0].value));
  }
  g.log_total[t] = static_cast<float>(all[0].value + std::log(sum));
}

void Head(const HeadArguments& g, Pool& pool, uint8_t* workspace) {
  const Activations a(workspace, g.tokens, g.weight.cols);
  workspace += Activations::Bytes(g.tokens, g.weight.cols);
  const int threads = pool.size();
  Candidate* heaps = reinterpret_cast<Candidate*>(workspace);
  workspace += Aligned(threads * g.tokens * g.top * static_cast<int64_t>(sizeof(Candidate)));
  Candidate* merged = reinterpret_cast<Candidate*>(workspace);
  workspace += Aligned(threads * g.tokens * g.top * static_cast<int64_t>(sizeof(Candidate)));
  int64_t* sizes = reinterpret_cast<int64_t*>(workspace);
  std::memset(sizes, 0, threads * g.tokens * sizeof(int64_t));
  workspace += Aligned(threads * g.tokens * static_cast<int64_t>(sizeof(int64_t)));
  ChunkTotal* totals = reinterpret_cast<ChunkTotal*>(workspace);
  Wanted wanted;
  wanted.Add(g.weight.format);
  Phase rows(g.tokens), chunks(HeadChunks(g)), merges(g.tokens);
  pool.Run([&](int thread) {
    rows.Share([&](int64_t t) { PrepareRow(a, t, g.x + t * a.cols, nullptr, 0, wanted); });
    chunks.ShareAhead(LooksAhead(g.tokens), [&](int64_t chunk, int64_t next_chunk) {
      HeadChunk(g, a, chunk, next_chunk, heaps + thread * g.tokens * g.top, sizes + thread * g.tokens, totals);
    });
    merges.Share([&](int64_t t) {
      HeadMerge(g, t, threads, heaps, sizes, totals, merged + t * threads * g.top);
    });
  });
}

int64_t HeadWorkspace(const HeadArguments& g, int threads) {
  return Activations::Bytes(g.tokens, g.weight.cols) +
         2 * Aligned(threads * g.tokens * g.top * static_cast<int64_t>(sizeof(Candidate))) +
         Aligned(threads * g.tokens * static_cast<int64_t>(sizeof(int64_t))) +
         Aligned(HeadChunks(g) * g.tokens * static_cast<int64_t>(sizeof(ChunkTotal)));
}

// IEEE half to float, one at a time.
inline float FromFp16(const uint8_t* p) {
  alignas(32) uint16_t half[kLanes] = {};
  alignas(64) float value[kLanes];
  std::memcpy(half, p, 2);
  Store(value, LoadFp16(half));
  return value[0];
}

// Columns of row r of a packed matrix, times `scale`. A row's codes lie 4 bytes in every line of its panel.
inline void UnpackRow(const Matrix& m, int64_t r, float scale, float* out) {
  const int64_t lane = r % kRows;
  const uint8_t* panel = m.data + r / kRows * PanelBytes(m.format, m.cols);
  float row_scale = 1.0f;
  if (!HasBlockScales(m.format) && m.format != Format::kBf16) {
    std::memcpy(&row_scale, panel + Units(m.cols) * UnitBytes(m.format) + lane * 4, 4);
  }
  for (int64_t c = 0; c < m.cols; ++c) {
    const uint8_t* unit = panel + c / kUnit * UnitBytes(m.format);
    const int64_t in_unit = c % kUnit, half = in_unit / kBlock, in_block = c % kBlock;
    float value = 0;
    switch (m.format) {
      case Format::kInt4B32:
      case Format::kInt4: {
        const uint8_t both = unit[(half * 4 + in_block % 16 / 4) * kLine + lane * 4 + c % 4];
        value = static_cast<float>((in_block < 16 ? both & 15 : both >> 4) - 8);
        break;
      }
      case Format::kInt8B32:
      case Format::kInt8: value = static_cast<float>(unit[in_unit / 4 * kLine + lane * 4 + c % 4] - 128); break;
      case Format::kSfp8: {
        alignas(64) int32_t top[kLanes] = {};
        alignas(64) float values[kLanes];
        top[0] = static_cast<int32_t>(static_cast<uint32_t>(unit[in_unit / 4 * kLine + lane * 4 + c % 4]) << 24);
        Store(values, FromSfp8(LoadInts(top)));
        value = values[0];
        break;
      }
      case Format::kBf16: {
        uint16_t bits;
        std::memcpy(&bits, unit + in_unit / 2 * kLine + lane * 4 + c % 2 * 2, 2);
        const uint32_t word = static_cast<uint32_t>(bits) << 16;
        std::memcpy(&value, &word, 4);
        break;
      }
    }
    if (HasBlockScales(m.format)) row_scale = FromFp16(unit + CodeLines(m.format) * kLine + half * 32 + lane * 2);
    out[c] = value * row_scale * scale;
  }
}

// The norm before the head. XLA sums a row in an order that depends on how many there are, and the last bit of a sum
// decides now and then which of two codes an activation is rounded to.
void Norm(const NormArguments& g, Pool& pool) {
  Phase rows(g.tokens);
  pool.Run([&](int) {
    rows.Share([&](int64_t t) {
      const float* x = g.x + t * g.cols;
      const Floats inverse = Set(InverseRms(x, g.cols, g.eps));
      for (int64_t i = 0; i < g.cols; i += kLanes)
        Store(g.out + t * g.cols + i, Mul(Mul(Load(x + i), inverse), Add(Set(1.0f), Load(g.gain + i))));
    });
  });
}

void Embed(const EmbedArguments& g, Pool& pool) {
  Phase rows(g.tokens);
  pool.Run([&](int) {
    rows.Share([&](int64_t t) {
      const int64_t id = std::max<int64_t>(0, std::min<int64_t>(g.ids[t], g.weight.rows - 1));
      UnpackRow(g.weight, id, g.scale, g.out + t * g.weight.cols);
    });
  });
}
