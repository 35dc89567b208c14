// A layer around its attention, in two kernels: before it (norm, q, k, v, QK-norm, RoPE) and after it (o, residual,
// feed-forward, residual). A phase costs well under a microsecond to share
// out, against 4 us for every operation of a compiled step that it replaces.
//
//     qkv    rows: norm, quantize | panels: q, k, v              | heads: norm, turn
//     tail   rows: quantize attn  | panels: o                    | rows: residual, norm, quantize
//            panel pairs: gate, up, gelu(gate) * up, quantize    | panels: down | rows: residual
//
// The feed-forward activations exist in int8 only, a block of 32 at a time: two panels of gate and two of up give 32
// neighbouring outputs for a few tokens, which are multiplied and quantized in cache. Ceilings: see linear.inl.

// Norms a head in place and turns its pairs (i, i + H / 2); H a multiple of 32.
inline void NormAndTurn(float* head, int64_t H, const float* gain, const float* cos, const float* sin, float eps) {
  const Floats inverse = Set(InverseRms(head, H, eps));
  const int64_t J = H / 2;
  for (int64_t j = 0; j < J; j += kLanes) {
    const Floats first = Mul(Mul(Load(head + j), inverse), Add(Set(1.0f), Load(gain + j)));
    const Floats second = Mul(Mul(Load(head + J + j), inverse), Add(Set(1.0f), Load(gain + J + j)));
    const Floats c = Load(cos + j), s = Load(sin + j);
    Store(head + j, Sub(Mul(first, c), Mul(second, s)));
    Store(head + J + j, MulAdd(second, c, Mul(first, s)));
  }
}

void Qkv(const QkvArguments& g, Pool& pool, uint8_t* workspace) {
  const Activations a(workspace, g.tokens, g.q_weight.cols);
  Wanted wanted;
  for (const Matrix* m : {&g.q_weight, &g.k_weight, &g.v_weight}) wanted.Add(m->format);
  const Product products[] = {{&a, g.q_weight, g.q}, {&a, g.k_weight, g.k}, {&a, g.v_weight, g.v}};
  const int64_t H = g.head_dim, J = H / 2, N = g.q_weight.rows / H, K = g.k_weight.rows / H;
  const Products multiply(products, 3, pool.size());
  Phase rows(a.rows), panels(multiply.cut.items()), heads(a.rows);
  pool.Run([&](int) {
    rows.Share([&](int64_t t) { PrepareRow(a, t, g.x + t * a.cols, g.gain, g.eps, wanted); });
    panels.ShareAhead(LooksAhead(g.tokens), multiply);
    heads.Share([&](int64_t t) {
      for (int64_t n = 0; n < N; ++n) NormAndTurn(g.q + (t * N + n) * H, H, g.q_gain, g.cos + t * J, g.sin + t * J, g.eps);
      for (int64_t k = 0; k < K; ++k) NormAndTurn(g.k + (t * K + k) * H, H, g.k_gain, g.cos + t * J, g.sin + t * J, g.eps);
    });
  });
}

int64_t QkvWorkspace(const QkvArguments& g) { return Activations::Bytes(g.tokens, g.q_weight.cols); }

// gelu(gate) * up of 32 columns of one token, ready for `down`.
inline void StoreHidden(const float* gate, const float* up, const Activations& hidden, int64_t t, int64_t pair,
                        Wanted wanted) {
  const Floats low = Mul(GeluTanh(Load(gate)), Load(up));
  const Floats high = Mul(GeluTanh(Load(gate + kLanes)), Load(up + kLanes));
  if (wanted.codes) QuantizeBlock(hidden, t, pair, low, high);
  if (wanted.floats) {
    Store(hidden.x + t * hidden.padded + pair * kBlock, low);
    Store(hidden.x + t * hidden.padded + pair * kBlock + kLanes, high);
  }
}

// Hidden columns 32 * begin .. 32 * end - 1 of every token; `then` is the pair this thread does afterwards, or -1. For
// few tokens some pairs of gate are multiplied before those of up: longer streams from memory.
inline void GateUpPairs(const Activations& x, const Matrix& gate, const Matrix& up, int64_t begin, int64_t end,
                        int64_t then, const Activations& hidden, Wanted wanted) {
  constexpr int64_t kPairs = 8, kTokens = 8 * kTileTokens;  // 48 tokens of one pair, or two of eight
  static_assert(kFewTokens * kPairs <= kTokens);
  alignas(64) float g[kTokens * kBlock], u[kTokens * kBlock];
  const int64_t at_once = x.rows <= kFewTokens ? kPairs : 1;
  for (int64_t first = begin; first < end; first += at_once) {
    const int64_t pairs = std::min(at_once, end - first), following = first + 1 < end ? first + 1 : then;
    for (int64_t t = 0; t < x.rows; t += kTokens) {
      const int64_t count = std::min<int64_t>(kTokens, x.rows - t), size = count * kBlock;
      const Next to_up = t == 0 ? Next(up, 2 * first, 2) : Next();
      const Next to_gate = t + count == x.rows && following >= 0 ? Next(gate, 2 * following, 2) : Next();
      for (int64_t i = 0; i < pairs; ++i) MultiplyPanels(x, gate, 2 * (first + i), 2, t, count, g + i * size, kBlock, to_up);
      for (int64_t i = 0; i < pairs; ++i) MultiplyPanels(x, up, 2 * (first + i), 2, t, count, u + i * size, kBlock, to_gate);
      for (int64_t i = 0; i < pairs; ++i) {
        for (int64_t n = 0; n < count; ++n) {
          const int64_t at = i * size + n * kBlock;
          StoreHidden(g + at, u + at, hidden, t + n, first + i, wanted);
        }
      }
    }
  }
}

// Columns past the width of `a` (half a unit, where the width is an odd number of blocks) are zero.
inline void ClearPadding(const Activations& a, int64_t t, Wanted wanted) {
  for (int64_t b = a.cols / kBlock; b < a.blocks; ++b) {
    if (wanted.codes) QuantizeBlock(a, t, b, Zero(), Zero());
    if (wanted.floats) std::memset(a.x + t * a.padded + b * kBlock, 0, kBlock * sizeof(float));
  }
}

void Tail(const TailArguments& g, Pool& pool, uint8_t* workspace) {
  const int64_t T = g.tokens, D = g.o.rows, E = g.o.cols, F = g.gate.rows;
  const Activations attn(workspace, T, E);
  workspace += Activations::Bytes(T, E);
  const Activations normed(workspace, T, D);
  workspace += Activations::Bytes(T, D);
  const Activations hidden(workspace, T, F);
  workspace += Activations::Bytes(T, F);
  float* y = reinterpret_cast<float*>(workspace);  // [T, D]: what o, then what down gave
  Wanted for_o, for_gate, for_down;
  for_o.Add(g.o.format);
  for_gate.Add(g.gate.format);
  for_gate.Add(g.up.format);
  for_down.Add(g.down.format);
  const Product o{&attn, g.o, y}, down{&hidden, g.down, y};
  const Products multiply_o(&o, 1, pool.size()), multiply_down(&down, 1, pool.size());
  const Cut cut(F / kBlock, pool.size());
  Phase attn_rows(T), o_panels(multiply_o.cut.items()), rows(T), hidden_pairs(cut.items());
  Phase down_panels(multiply_down.cut.items()), last_rows(T);
  pool.Run([&](int) {
    attn_rows.Share([&](int64_t t) { PrepareRow(attn, t, g.attn + t * E, nullptr, g.eps, for_o); });
    o_panels.ShareAhead(LooksAhead(T), multiply_o);
    rows.Share([&](int64_t t) {
      AddNormed(g.out + t * D, g.x + t * D, y + t * D, g.attn_gain, D, g.eps);
      PrepareRow(normed, t, g.out + t * D, g.ffw_gain, g.eps, for_gate);
      ClearPadding(hidden, t, for_down);
    });
    hidden_pairs.ShareAhead(LooksAhead(T), [&](int64_t item, int64_t next_item) {
      const int64_t then = next_item < 0 ? -1 : cut.begin(next_item);
      GateUpPairs(normed, g.gate, g.up, cut.begin(item), cut.end(item), then, hidden, for_down);
    });
    down_panels.ShareAhead(LooksAhead(T), multiply_down);
    last_rows.Share([&](int64_t t) {
      AddNormed(g.out + t * D, g.out + t * D, y + t * D, g.ffw_post_gain, D, g.eps);
    });
  });
}

int64_t TailWorkspace(const TailArguments& g) {
  return Activations::Bytes(g.tokens, g.o.cols) + Activations::Bytes(g.tokens, g.o.rows) +
         Activations::Bytes(g.tokens, g.gate.rows) + Aligned(g.tokens * g.o.rows * 4);
}
