// The vision tower: attention of everything to everything, exact and in bytes, and a whole layer, against double.
//
// Exact: sums of fp32 in another order, bound as in attention_cases.cc. In bytes: against double on the unrounded numbers,
// within what the roundings of docs/numerics.md can do at worst. A layer: within a twentieth of the largest number of
// what it adds, because a rounding may tip a code: what is looked for is a wrong bias, matrix, half, head or residual.
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

using Numbers = std::vector<double>;

constexpr int kHere = 128;  // keys that share a scale

struct Heads {
  int N, P, H;
  float scale;
  Memory q, k, v, out;
  Heads(int n, int p, int h, float spread, Random& random)
      : N(n), P(p), H(h), scale(1 / std::sqrt(static_cast<float>(h))), q(Size()), k(Size()), v(Size()), out(Size()) {
    for (const Memory* m : {&q, &k, &v})
      for (int i = 0; i < N * P * H; ++i) m->as<float>()[i] = random.Between(-spread, spread);
    // What softmax does not see must not cost the rest its precision. One key's values are large in every column, so that
    // the blocks of 128 keys have scales far apart; the last column is of one sign in the first block and of the other in the rest, so
    // that a block that counts by another's scale is seen.
    for (int i = 0; i < N * H; ++i) v.as<float>()[i / H * P * H + i % H] = (i % 2 != 0 ? 8 : -8) * spread;
    for (int i = 0; i < N * P * H; ++i) {
      k.as<float>()[i] += i % H == 0 ? 20.0f : 0.0f;
      v.as<float>()[i] += i % H == 1 ? -9.0f : i % H == H - 1 ? (i / H % P < kHere ? -spread : spread) : 0.0f;
    }
  }
  size_t Size() const { return sizeof(float) * N * P * H; }
  const float* Row(const Memory& m, int n, int p) const { return m.as<float>() + (n * P + p) * H; }
};

double Score(const Heads& c, int n, int p, int s) {
  double sum = 0;
  for (int h = 0; h < c.H; ++h) sum += static_cast<double>(c.Row(c.q, n, p)[h]) * c.Row(c.k, n, s)[h];
  return sum * c.scale;
}

// Weights of all keys for a query, and the largest score.
Numbers WeightsOf(const Heads& c, int n, int p) {
  Numbers w(static_cast<size_t>(c.P));
  for (int s = 0; s < c.P; ++s) w[s] = Score(c, n, p, s);
  const double most = *std::max_element(w.begin(), w.end());
  double total = 0;
  for (double& each : w) total += each = std::exp(each - most);
  for (double& each : w) each /= total;
  return w;
}

// The largest distance of a key, or a value, from the mean of its column.
double Furthest(const Heads& c, const Memory& m, int n) {
  double most = 0;
  for (int h = 0; h < c.H; ++h) {
    double mean = 0;
    for (int p = 0; p < c.P; ++p) mean += c.Row(m, n, p)[h] / static_cast<double>(c.P);
    for (int p = 0; p < c.P; ++p) most = std::max(most, std::fabs(c.Row(m, n, p)[h] - mean));
  }
  return most;
}

double SumOf(const float* x, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += std::fabs(static_cast<double>(x[i]));
  return sum;
}

// How far a score may be off: half a step of each side's code, times what it multiplies.
double ScoreBound(const Heads& c, int n, int p, bool exact) {
  double most = 0, reach = 0;
  for (int h = 0; h < c.H; ++h) most = std::max(most, std::fabs(static_cast<double>(c.Row(c.q, n, p)[h])));
  for (int s = 0; s < c.P; ++s) reach = std::max(reach, SumOf(c.Row(c.k, n, s), c.H));
  if (exact) return std::ldexp(c.H + 4, -24) * c.scale * most * reach;
  const double k_step = Furthest(c, c.k, n) / 127, q_step = most / 127;
  return c.scale * (k_step / 2 * SumOf(c.Row(c.q, n, p), c.H) + q_step / 2 * c.H * (Furthest(c, c.k, n) + k_step)) + 1e-4;
}

void ExpectAttended(const Heads& c, bool exact) {
  Numbers steps(static_cast<size_t>(c.N));
  for (int n = 0; n < c.N; ++n) steps[n] = Furthest(c, c.v, n);
  for (int n = 0; n < c.N; ++n) {
    for (int p = 0; p < c.P; p += c.P > 200 ? 37 : 1) {
      const Numbers w = WeightsOf(c, n, p);
      const double r = std::expm1(2 * ScoreBound(c, n, p, exact));
      // Half a step of the largest weight of every block, a key.
      double rounding = 0;
      for (int b = 0; b < c.P && !exact; b += kHere) {
        const int end = std::min(c.P, b + kHere);
        rounding += (end - b) * (1 + r) * *std::max_element(w.begin() + b, w.begin() + end) * (0.5 / 255 + 1e-4);
      }
      for (int h = 0; h < c.H; ++h) {
        double want = 0, size = 0, away = 0;
        for (int s = 0; s < c.P; ++s) {
          want += w[s] * c.Row(c.v, n, s)[h], size += w[s] * std::fabs(c.Row(c.v, n, s)[h]);
        }
        for (int s = 0; s < c.P; ++s) away += w[s] * std::fabs(c.Row(c.v, n, s)[h] - want);
        // In bytes only the distance from the mean is rounded and weighed; a score that is off by r moves the result
        // by what its key is away from it.
        const double bound = exact ? (2 * r + std::ldexp(c.P + 40, -24)) * size
                                   : 2 * r * away + 2 * rounding * steps[n] + steps[n] * 0.5 / 127 + 1e-4 * (size + 1);
        const double got = c.out.as<float>()[(n * c.P + p) * c.H + h];
        if (!(std::fabs(got - want) <= bound)) return Fail("head %d query %d at %d: want %.6g within %.2g, got %.6g", n, p, h, want, bound, got);
      }
    }
  }
}

void TestAttendAll(const Kernels& kernels, int N, int P, int H, float spread, bool exact) {
  Pool& pool = Pool::Get();
  Case("%s attend all, %d heads of %d, %d patches, spread %g, exact %d, %d threads", kernels.isa, N, H, P,
       static_cast<double>(spread), exact, pool.size());
  Random random(static_cast<uint64_t>(N * 7919 + P * 31 + H));
  const Heads c(N, P, H, spread, random);
  const AttendAllArguments call{N, P, H, c.scale, exact, c.q.as<float>(), c.k.as<float>(), c.v.as<float>(), c.out.as<float>()};
  const Memory workspace(static_cast<size_t>(std::max<int64_t>(64, kernels.attend_all_workspace(call))));
  std::memset(workspace.as<uint8_t>(), 0xff, workspace.bytes());
  kernels.attend_all(call, pool, workspace.as<uint8_t>());
  char key[80];
  std::snprintf(key, sizeof(key), "attend all %d %d %d %g %d", N, P, H, static_cast<double>(spread), exact);
  if (Same(key, c.out.as<uint8_t>(), c.out.bytes())) ExpectAttended(c, exact);
}

// One layer written out: rows of doubles.
struct Layer {
  int P, D, F, N;
  RandomMatrix q, k, v, o, up, down;
  Layer(int p, int d, int f, int n, Random& random)
      : P(p), D(d), F(f), N(n), q(Format::kInt8, d, d, random.Bits()), k(Format::kInt8, d, d, random.Bits()),
        v(Format::kInt8, d, d, random.Bits()), o(Format::kInt8, d, d, random.Bits()), up(Format::kInt8, f, d, random.Bits()),
        down(Format::kInt8, d, f, random.Bits()) {}
};

Numbers Norm(const double* x, int n, const float* gain, const float* bias, double eps) {
  double mean = 0, variance = 0;
  for (int i = 0; i < n; ++i) mean += x[i] / n;
  for (int i = 0; i < n; ++i) variance += (x[i] - mean) * (x[i] - mean) / n;
  Numbers out(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) out[i] = (x[i] - mean) / std::sqrt(variance + eps) * gain[i] + bias[i];
  return out;
}

Numbers Times(const RandomMatrix& w, const Numbers& x, const float* bias) {
  Numbers out(static_cast<size_t>(w.matrix().rows));
  for (size_t r = 0; r < out.size(); ++r) {
    out[r] = bias[r];
    for (size_t i = 0; i < x.size(); ++i) out[r] += w.Weight(static_cast<int>(r), static_cast<int>(i)) * x[i];
  }
  return out;
}

std::vector<Numbers> WrittenOut(const Layer& layer, const TowerArguments& g) {
  const int P = layer.P, D = layer.D, N = layer.N, H = D / N;
  std::vector<Numbers> x(P), q(P), k(P), v(P);
  for (int p = 0; p < P; ++p) {
    x[p].assign(g.x + p * D, g.x + (p + 1) * D);
    const Numbers h = Norm(x[p].data(), D, g.attn_norm.weight, g.attn_norm.bias, g.eps);
    q[p] = Times(layer.q, h, g.q.bias), k[p] = Times(layer.k, h, g.k.bias), v[p] = Times(layer.v, h, g.v.bias);
  }
  for (int p = 0; p < P; ++p) {
    Numbers out(static_cast<size_t>(D));
    for (int n = 0; n < N; ++n) {
      double total = 0;
      for (int s = 0; s < P; ++s) {
        double score = 0;
        for (int h = n * H; h < (n + 1) * H; ++h) score += q[p][h] * k[s][h];
        const double w = std::exp(score / std::sqrt(H));
        total += w;
        for (int h = n * H; h < (n + 1) * H; ++h) out[h] += w * v[s][h];
      }
      for (int h = n * H; h < (n + 1) * H; ++h) out[h] /= total;
    }
    const Numbers o = Times(layer.o, out, g.o.bias);
    for (int i = 0; i < D; ++i) x[p][i] += o[i];
    Numbers up = Times(layer.up, Norm(x[p].data(), D, g.ffw_norm.weight, g.ffw_norm.bias, g.eps), g.up.bias);
    for (double& u : up) u = 0.5 * u * (1 + std::tanh(0.7978845608028654 * (u + 0.044715 * u * u * u)));
    const Numbers down = Times(layer.down, up, g.down.bias);
    for (int i = 0; i < D; ++i) x[p][i] += down[i];
  }
  return x;
}

void TestLayer(const Kernels& kernels, int P, int D, int F, int N) {
  Pool& pool = Pool::Get();
  Case("%s tower layer, %d patches, %d x %d, %d heads, %d threads", kernels.isa, P, D, F, N, pool.size());
  Random random(static_cast<uint64_t>(P * 31 + D * 7 + F));
  const Layer layer(P, D, F, N, random);
  const auto row = [&](int n, float low, float high) {
    std::vector<float> out(static_cast<size_t>(n));
    for (float& x : out) x = random.Between(low, high);
    return out;
  };
  // Codes of +-127 and scales near 1 would make scores of thousands: gains bring them back.
  const auto x = row(P * D, -1, 1), gain = row(D, 0.001f, 0.002f), norm_bias = row(D, -0.001f, 0.001f);
  std::vector<std::vector<float>> bias;
  for (int n : {D, D, D, D, F, D}) bias.push_back(row(n, -0.5f, 0.5f));
  const Matrix q = layer.q.matrix(), k = layer.k.matrix(), v = layer.v.matrix(), o = layer.o.matrix(), up = layer.up.matrix(),
               down = layer.down.matrix();
  const Memory in(x.size() * 4), room(3 * x.size() * 4), out(x.size() * 4);
  std::memcpy(in.as<float>(), x.data(), in.bytes());
  const TowerArguments g{P, D, F, N, 1e-6f, in.as<float>(), {gain.data(), norm_bias.data()}, {gain.data(), norm_bias.data()},
                         {&q, bias[0].data()}, {&k, bias[1].data()}, {&v, bias[2].data()}, {&o, bias[3].data()},
                         {&up, bias[4].data()}, {&down, bias[5].data()}, room.as<float>(), out.as<float>()};
  const Memory workspace(static_cast<size_t>(kernels.tower_workspace(g)));
  kernels.tower_layer(g, pool, workspace.as<uint8_t>());
  char key[64];
  std::snprintf(key, sizeof(key), "tower layer %d %d %d %d", P, D, F, N);
  if (!Same(key, out.as<uint8_t>(), out.bytes())) return;
  const std::vector<Numbers> want = WrittenOut(layer, g);
  double most = 0, error = 0;
  for (int p = 0; p < P; ++p)
    for (int i = 0; i < D; ++i) {
      most = std::max(most, std::fabs(want[p][i] - x[p * D + i]));
      error = std::max(error, std::fabs(want[p][i] - out.as<float>()[p * D + i]));
    }
  if (!(error <= 0.05 * most)) Fail("wrong by %.3g of what it adds, %.3g", error / most, most);
}

}  // namespace

void TestTower(const Kernels& kernels) {
  for (const bool exact : {true, false}) {
    TestAttendAll(kernels, 1, 1, 4, 1, exact);
    TestAttendAll(kernels, 2, 3, 16, 1, exact);
    TestAttendAll(kernels, 1, 33, 20, 1, exact);
    TestAttendAll(kernels, 3, 64, 72, 1, exact);
    TestAttendAll(kernels, 1, 127, 64, 2, exact);
    TestAttendAll(kernels, 2, 129, 40, 2, exact);
    TestAttendAll(kernels, 1, 300, 72, 1, exact);
    TestAttendAll(kernels, 1, 17, 5, 1, exact);
    TestAttendAll(kernels, 1, 40, 33, 0, exact);  // all queries zero
  }
  TestLayer(kernels, 1, 32, 32, 1);
  TestLayer(kernels, 5, 64, 96, 4);
  TestLayer(kernels, 70, 96, 160, 2);
  TestLayer(kernels, 66, 144 + 16, 32, 5);
}

}  // namespace gemworks::test
