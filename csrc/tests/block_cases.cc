// The kernels around attention, the head and the lookup, against the same steps one after another in plain code.
//
// The head and the lookup are held to the bits of the products they are made of. In qkv and tail a rounding of the norm
// may tip a code of the activations after it, so they are held to 1 % of the largest number of the row: what is looked
// for here is a wrong gain, half, head, pair or residual. Every run must give the same bits all the same.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cases.h"
#include "matrices.h"
#include "pool.h"

namespace gemworks::test {
namespace {

using Row = std::vector<float>;

constexpr float kEps = 1e-6f;

Row RandomRow(Random& random, int count, float size) {
  Row row(static_cast<size_t>(count));
  for (float& x : row) x = random.Between(-size, size);
  return row;
}

// n numbers times (1 + gain) / rms.
Row Normed(const float* x, const float* gain, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  const double inverse = 1 / std::sqrt(sum / n + kEps);
  Row out(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) out[i] = static_cast<float>(x[i] * inverse * (1 + static_cast<double>(gain[i])));
  return out;
}

Row Times(const RandomMatrix& weight, const Row& x) {
  const Matrix m = weight.matrix();
  Row out(static_cast<size_t>(m.rows));
  for (int row = 0; row < m.rows; ++row) {
    out[row] = static_cast<float>(Multiply(weight, row, x.data(), static_cast<int>(m.cols), m.format).value);
  }
  return out;
}

void ExpectRow(const char* name, int t, const Row& want, const float* got) {
  float largest = 0;
  for (float w : want) largest = std::fmax(largest, std::fabs(w));
  for (size_t i = 0; i < want.size(); ++i) {
    if (!(std::fabs(got[i] - want[i]) <= 0.01f * largest)) {
      return Fail("%s of token %d at %zu: want %.6g, got %.6g", name, t, i, static_cast<double>(want[i]), static_cast<double>(got[i]));
    }
  }
}

void SameRun(const char* name, int number, const Memory& memory) {
  char key[64];
  std::snprintf(key, sizeof(key), "%s %d", name, number);
  Same(key, memory.as<uint8_t>(), memory.bytes());
}

Row TurnedHead(const float* head, const float* gain, const float* cos, const float* sin, int H) {
  const Row normed = Normed(head, gain, H);
  Row out(static_cast<size_t>(H));
  for (int j = 0; j < H / 2; ++j) {
    out[j] = normed[j] * cos[j] - normed[j + H / 2] * sin[j];
    out[j + H / 2] = normed[j + H / 2] * cos[j] + normed[j] * sin[j];
  }
  return out;
}

void TestQkv(const Kernels& kernels, int number, Format qf, Format kf, Format vf, int tokens, int D, int N, int K, int H) {
  Pool& pool = Pool::Get();
  Case("%s qkv %s %s %s, %d tokens, D %d, %d and %d heads of %d, %d threads", kernels.isa, NameOf(qf), NameOf(kf),
       NameOf(vf), tokens, D, N, K, H, pool.size());
  Random random(static_cast<uint64_t>(number) + 100);
  const RandomMatrix wq(qf, N * H, D, random.Bits()), wk(kf, K * H, D, random.Bits()), wv(vf, K * H, D, random.Bits());
  const Row x = RandomRow(random, tokens * D, 3), gain = RandomRow(random, D, 1), q_gain = RandomRow(random, H, 1),
            k_gain = RandomRow(random, H, 1), cos = RandomRow(random, tokens * H / 2, 1), sin = RandomRow(random, tokens * H / 2, 1);
  Memory q(sizeof(float) * tokens * N * H), k(sizeof(float) * tokens * K * H), v(sizeof(float) * tokens * K * H);
  const QkvArguments g{tokens, H, kEps, x.data(), gain.data(), q_gain.data(), k_gain.data(), cos.data(), sin.data(),
                       wq.matrix(), wk.matrix(), wv.matrix(), q.as<float>(), k.as<float>(), v.as<float>()};
  Memory workspace(static_cast<size_t>(kernels.qkv_workspace(g)));
  kernels.qkv(g, pool, workspace.as<uint8_t>());
  SameRun("q", number, q);
  SameRun("k", number, k);
  SameRun("v", number, v);
  for (int t = 0; t < tokens; ++t) {
    const Row normed = Normed(x.data() + t * D, gain.data(), D);
    const Row heads[] = {Times(wq, normed), Times(wk, normed)};
    for (int n = 0; n < N; ++n) {
      const Row want = TurnedHead(heads[0].data() + n * H, q_gain.data(), cos.data() + t * H / 2, sin.data() + t * H / 2, H);
      ExpectRow("q", t, want, q.as<float>() + (t * N + n) * H);
    }
    for (int n = 0; n < K; ++n) {
      const Row want = TurnedHead(heads[1].data() + n * H, k_gain.data(), cos.data() + t * H / 2, sin.data() + t * H / 2, H);
      ExpectRow("k", t, want, k.as<float>() + (t * K + n) * H);
    }
    ExpectRow("v", t, Times(wv, normed), v.as<float>() + t * K * H);
  }
}

void AddNormedRow(Row& x, const Row& y, const Row& gain) {
  const Row normed = Normed(y.data(), gain.data(), static_cast<int>(y.size()));
  for (size_t i = 0; i < x.size(); ++i) x[i] += normed[i];
}

void TestTail(const Kernels& kernels, int number, Format of, Format gate_f, Format up_f, Format down_f, int tokens, int D, int E, int F) {
  Pool& pool = Pool::Get();
  Case("%s tail %s %s %s %s, %d tokens, D %d, E %d, F %d, %d threads", kernels.isa, NameOf(of), NameOf(gate_f),
       NameOf(up_f), NameOf(down_f), tokens, D, E, F, pool.size());
  Random random(static_cast<uint64_t>(number) + 200);
  const RandomMatrix o(of, D, E, random.Bits()), gate(gate_f, F, D, random.Bits()), up(up_f, F, D, random.Bits()),
      down(down_f, D, F, random.Bits());
  const Row x = RandomRow(random, tokens * D, 3), attn = RandomRow(random, tokens * E, 2), attn_gain = RandomRow(random, D, 1),
            ffw_gain = RandomRow(random, D, 0.5f), post_gain = RandomRow(random, D, 1);
  Memory out(sizeof(float) * tokens * D);
  const TailArguments g{tokens, kEps, x.data(), attn.data(), attn_gain.data(), ffw_gain.data(), post_gain.data(),
                        o.matrix(), gate.matrix(), up.matrix(), down.matrix(), out.as<float>()};
  Memory workspace(static_cast<size_t>(kernels.tail_workspace(g)));
  kernels.tail(g, pool, workspace.as<uint8_t>());
  SameRun("tail", number, out);
  for (int t = 0; t < tokens; ++t) {
    Row want(x.begin() + t * D, x.begin() + (t + 1) * D);
    AddNormedRow(want, Times(o, Row(attn.begin() + t * E, attn.begin() + (t + 1) * E)), attn_gain);
    const Row normed = Normed(want.data(), ffw_gain.data(), D);
    Row hidden = Times(gate, normed);
    const Row factor = Times(up, normed);
    for (int i = 0; i < F; ++i) {
      const double h = hidden[i];
      hidden[i] = static_cast<float>(h / (1 + std::exp(-1.5957691216057308 * (h + 0.044715 * h * h * h))) * factor[i]);
    }
    AddNormedRow(want, Times(down, hidden), post_gain);
    ExpectRow("out", t, want, out.as<float>() + t * D);
  }
}

// Logits by the linear kernel, which linear_cases.cc looks at; sorted here.
void TestHead(const Kernels& kernels, int number, Format format, int tokens, int rows, int vocab, int top, int D) {
  Pool& pool = Pool::Get();
  Case("%s head %s, %d tokens, %d of %d rows, top %d, %d threads", kernels.isa, NameOf(format), tokens, vocab, rows, top, pool.size());
  Random random(static_cast<uint64_t>(number) + 300);
  const RandomMatrix weight(format, rows, D, random.Bits());
  Row x = RandomRow(random, tokens * D, 1);
  if (tokens > 1) std::fill(x.begin(), x.begin() + D, 0.0f);  // all logits equal: the smallest ids win
  Memory logits(sizeof(float) * tokens * rows), values(sizeof(float) * tokens * top), ids(sizeof(int32_t) * tokens * top),
      totals(sizeof(float) * tokens);
  const LinearArguments linear{tokens, x.data(), weight.matrix(), logits.as<float>()};
  Memory linear_workspace(static_cast<size_t>(kernels.linear_workspace(linear)));
  kernels.linear(linear, pool, linear_workspace.as<uint8_t>());
  HeadArguments g{};
  g.with_total = number % 4 != 3, g.tokens = tokens, g.vocab = vocab, g.top = top;
  g.x = x.data(), g.weight = weight.matrix();
  g.values = values.as<float>(), g.ids = ids.as<int32_t>(), g.log_total = totals.as<float>();
  Memory workspace(static_cast<size_t>(kernels.head_workspace(g, pool.size())));
  kernels.head(g, pool, workspace.as<uint8_t>());
  SameRun("head values", number, values);
  SameRun("head ids", number, ids);
  for (int t = 0; t < tokens; ++t) {
    const float* row = logits.as<float>() + t * rows;
    std::vector<int> order(static_cast<size_t>(vocab));
    for (int i = 0; i < vocab; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
    for (int i = 0; i < top; ++i) {
      const int32_t id = ids.as<int32_t>()[t * top + i];
      if (id != order[i] || BitsOf(values.as<float>()[t * top + i]) != BitsOf(row[order[i]])) {
        return Fail("token %d, place %d: want row %d with %.9g, got row %d with %.9g", t, i, order[i],
                    static_cast<double>(row[order[i]]), id, static_cast<double>(values.as<float>()[t * top + i]));
      }
    }
    if (!g.with_total && totals.as<float>()[t] != 0) Fail("token %d: a total that nobody wanted", t);
    if (!g.with_total) continue;
    double sum = 0;
    for (int i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(row[i]) - row[order[0]]);
    const double want = row[order[0]] + std::log(sum), got = totals.as<float>()[t];
    if (!(std::fabs(got - want) <= 2e-6 * (1 + std::fabs(want)))) Fail("token %d: want ln sum %.9g, got %.9g", t, want, got);
  }
}

void TestNorm(const Kernels& kernels, int tokens, int D) {
  Pool& pool = Pool::Get();
  Case("%s norm, %d x %d, %d threads", kernels.isa, tokens, D, pool.size());
  Random random(static_cast<uint64_t>(tokens * 1000 + D));
  Memory x(sizeof(float) * tokens * D), gain(sizeof(float) * D), out(sizeof(float) * tokens * D), one(sizeof(float) * D);
  for (int i = 0; i < tokens * D; ++i) x.as<float>()[i] = random.Between(-30.0f, 30.0f);
  for (int i = 0; i < D; ++i) gain.as<float>()[i] = random.Between(-1.0f, 3.0f);
  kernels.norm({tokens, D, 1e-6f, x.as<float>(), gain.as<float>(), out.as<float>()}, pool);
  for (int t = 0; t < tokens; ++t) {
    const float* row = x.as<float>() + t * D;
    double sum = 0;
    for (int c = 0; c < D; ++c) sum += static_cast<double>(row[c]) * row[c];
    for (int c = 0; c < D; ++c) {
      const double want = row[c] / std::sqrt(sum / D + 1e-6) * (1.0 + gain.as<float>()[c]), got = out.as<float>()[t * D + c];
      if (!(std::fabs(got - want) <= 1e-6 * std::fabs(want) + 1e-30)) return Fail("[%d, %d]: want %.9g, got %.9g", t, c, want, got);
    }
    kernels.norm({1, D, 1e-6f, row, gain.as<float>(), one.as<float>()}, pool);
    if (std::memcmp(one.as<float>(), out.as<float>() + t * D, sizeof(float) * D) != 0) return Fail("row %d alone has other bits", t);
  }
}

void TestEmbed(const Kernels& kernels, Format format, int rows, int D) {
  Pool& pool = Pool::Get();
  Case("%s embed %s, %d x %d, %d threads", kernels.isa, NameOf(format), rows, D, pool.size());
  const RandomMatrix weight(format, rows, D, 400);
  const int32_t ids[] = {0, rows - 1, rows / 2, 1, -1, INT32_MIN, rows, INT32_MAX};
  constexpr int kTokens = sizeof(ids) / sizeof(ids[0]);
  const float scale = 25.25f;
  Memory out(sizeof(float) * kTokens * D);
  kernels.embed({kTokens, ids, weight.matrix(), scale, out.as<float>()}, pool);
  for (int t = 0; t < kTokens; ++t) {
    const int row = std::clamp(ids[t], 0, rows - 1);
    for (int c = 0; c < D; ++c) {
      const float want = static_cast<float>(weight.Code(row, c)) * static_cast<float>(weight.Scale(row, c)) * scale;
      const float got = out.as<float>()[t * D + c];
      if (want != got) return Fail("id %d, column %d: want %a, got %a", ids[t], c, want, got);
    }
  }
}

}  // namespace

void TestBlocks(const Kernels& kernels) {
  int number = 0;
  for (int tokens : {1, 3, 8, 37}) {
    TestNorm(kernels, tokens, 16);
    TestNorm(kernels, tokens, 1152);
  }
  for (Format f : kFormats) {
    const Format next = kFormats[(static_cast<int>(f) + 1) % 6], third = kFormats[(static_cast<int>(f) + 3) % 6];
    for (int tokens : {1, 2, 7}) {
      TestQkv(kernels, number, f, f, f, tokens, 96, 3, 1, 32);
      TestQkv(kernels, number + 1, f, next, third, tokens, 64, 2, 2, 64);
      TestTail(kernels, number, f, f, f, f, tokens, 96, 64, 160);
      TestTail(kernels, number + 1, third, f, next, f, tokens, 64, 96, 96);
      TestHead(kernels, number, f, tokens, 1040, 1040, 5, 64);
      TestHead(kernels, number + 1, f, tokens, 2101, 2090, 64, 96);
      number += 2;
    }
    TestHead(kernels, number++, f, 3, 7, 7, 7, 32);
    TestEmbed(kernels, f, 17, 96);
    TestEmbed(kernels, f, 1, 32);
  }
  TestQkv(kernels, number, Format::kInt8, Format::kInt8, Format::kInt8, 0, 64, 1, 1, 32);
  TestTail(kernels, number, Format::kInt8, Format::kInt8, Format::kInt8, Format::kInt8, 0, 64, 64, 64);
}

}  // namespace gemworks::test
