// Attention over rings and pages against loops over positions in double: outputs within a bound, every stored number
// exact, every other slot untouched. What a query may not see is NaN: slots nobody wrote, padding columns, page 0.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cases.h"
#include "check.h"
#include "pool.h"

namespace gemworks::test {
namespace {

constexpr const char* kTypes[] = {"fp32", "bf16", "int8"};

struct Shape {
  int rows, columns, heads, kv_heads, head_dim;
};
struct Layer {
  KvType type;
  bool is_ring;
  int window, slots;  // of the ring, or of a page
};

float Bf16ToFloat(uint16_t bits) { return FromBits(static_cast<uint32_t>(bits) << 16); }
uint16_t FloatToBf16(float x) {
  const uint32_t bits = BitsOf(x);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

double Rounded(float x) { return Bf16ToFloat(FloatToBf16(x)); }

// One pool of keys or values, with every slot NaN (codes have none: a scale of NaN) until it is written.
struct Store {
  KvType type;
  int H;
  Memory data, scales;
  Store(KvType t, size_t heads, int head_dim)
      : type(t), H(head_dim), data(heads * static_cast<size_t>(head_dim) * BytesOf(t)), scales(heads * sizeof(float)) {
    std::memset(data.as<uint8_t>(), 0xff, data.bytes());
    std::memset(scales.as<uint8_t>(), 0xff, scales.bytes());
  }
  static size_t BytesOf(KvType t) { return t == KvType::kFloat32 ? 4 : t == KvType::kBf16 ? 2 : 1; }

  // What a slot's head must hold after x was written to it, and reading it back.
  void Write(size_t head, const float* x) {
    float largest = 0;
    for (int h = 0; h < H; ++h) largest = std::max(largest, std::fabs(x[h]));
    const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
    if (type == KvType::kInt8) scales.as<float>()[head] = largest > 1e-30f ? largest * (1.0f / 127.0f) : 0.0f;
    for (int h = 0; h < H; ++h) {
      const size_t at = head * static_cast<size_t>(H) + static_cast<size_t>(h);
      if (type == KvType::kFloat32) data.as<float>()[at] = x[h];
      if (type == KvType::kBf16) data.as<uint16_t>()[at] = FloatToBf16(x[h]);
      if (type == KvType::kInt8) data.as<int8_t>()[at] = static_cast<int8_t>(std::nearbyint(x[h] * inverse));
    }
  }
  double Read(size_t head, int h) const {
    const size_t at = head * static_cast<size_t>(H) + static_cast<size_t>(h);
    if (type == KvType::kFloat32) return data.as<float>()[at];
    if (type == KvType::kBf16) return Bf16ToFloat(data.as<uint16_t>()[at]);
    return static_cast<double>(data.as<int8_t>()[at]) * scales.as<float>()[head];
  }
  bool Same(const Store& other) const {
    return std::memcmp(data.as<uint8_t>(), other.data.as<uint8_t>(), data.bytes()) == 0 &&
           (type != KvType::kInt8 || std::memcmp(scales.as<uint8_t>(), other.scales.as<uint8_t>(), scales.bytes()) == 0);
  }
};

// A step: rows of some age, a cache that holds them, a chunk, and what must come out.
class Step {
 public:
  Step(const Shape& shape, const Layer& layer, std::vector<int32_t> start, std::vector<int32_t> count, uint64_t seed)
      : s_(shape), l_(layer), start_(start), count_(count), random_(seed), tokens_(shape.rows * shape.columns),
        stride_((shape.heads + 2 * shape.kv_heads) * shape.head_dim + 5),
        pages_(1 + (*std::max_element(start.begin(), start.end()) + shape.columns) / layer.slots),
        num_pools_(layer.is_ring ? shape.rows + 1 : shape.rows * pages_ + 1), qkv_(sizeof(float) * tokens_ * stride_),
        out_(sizeof(float) * tokens_ * (shape.heads * shape.head_dim + 3)), k_(layer.type, Heads(), shape.head_dim),
        v_(layer.type, Heads(), shape.head_dim), k_after_(layer.type, Heads(), shape.head_dim),
        v_after_(layer.type, Heads(), shape.head_dim), own_k_(layer.type, OwnHeads(), shape.head_dim),
        own_v_(layer.type, OwnHeads(), shape.head_dim) {
    // Rings and pages in another order than the rows; number 0 is nobody's.
    const int per_row = l_.is_ring ? 1 : pages_;
    for (int i = 0; i < s_.rows * per_row; ++i) where_.push_back(s_.rows * per_row - i);
    for (int i = 0; i < tokens_ * stride_; ++i) qkv_.as<float>()[i] = random_.Between(-1.5f, 1.5f);
    for (int r = 0; r < s_.rows; ++r) {
      const int first = l_.is_ring ? std::max(0, start_[r] - l_.slots) : 0;
      for (int p = first; p < start_[r]; ++p) Remember(r, p);
      for (int c = std::max(0, count_[r]); c < s_.columns; ++c)
        std::fill_n(Token(r, c), stride_, NAN);
    }
    for (int r = 0; r < s_.rows; ++r)
      for (int c = 0; c < count_[r]; ++c)
        for (int j = 0; j < s_.kv_heads; ++j) {
          own_k_.Write(Own(r, c, j), Key(r, c, j));
          own_v_.Write(Own(r, c, j), Value(r, c, j));
        }
    Copy(k_, k_after_), Copy(v_, v_after_);
    for (int r = 0; r < s_.rows; ++r)
      for (int c = l_.is_ring ? std::max(0, count_[r] - l_.slots) : 0; c < count_[r]; ++c)
        for (int j = 0; j < s_.kv_heads; ++j) {
          k_after_.Write(Head(r, start_[r] + c, j), Key(r, c, j));
          v_after_.Write(Head(r, start_[r] + c, j), Value(r, c, j));
        }
  }

  void Run(const Kernels& kernels, Pool& pool, const char* key) {
    std::memset(out_.as<uint8_t>(), 0xff, out_.bytes());
    const int H = s_.head_dim;
    AttentionArguments call{};
    call.rows = s_.rows, call.columns = s_.columns, call.heads = s_.heads, call.kv_heads = s_.kv_heads, call.head_dim = H;
    call.scale = Scale();
    call.q = qkv_.as<float>(), call.k = call.q + s_.heads * H, call.v = call.k + s_.kv_heads * H;
    call.out = out_.as<float>();
    call.q_stride = call.k_stride = call.v_stride = stride_, call.out_stride = s_.heads * H + 3;
    call.start = start_.data(), call.count = count_.data();
    call.window = l_.is_ring ? l_.window : 0;
    call.kv = {l_.type, k_.data.as<void>(), v_.data.as<void>(), k_.scales.as<float>(), v_.scales.as<float>(), l_.slots,
               l_.is_ring, where_.data(), l_.is_ring ? 1 : pages_};
    // Pages are read back after the chunk is stored in them, a ring before.
    in_pairs_ = std::strcmp(kernels.isa, "avx512_bf16") == 0 && l_.type == KvType::kBf16;
    if (!l_.is_ring) Expect(k_after_, v_after_);
    else Expect(k_, v_);
    kernels.attend(call, pool);
    if (!k_.Same(k_after_) || !v_.Same(v_after_)) Fail("the cache is not what it was with the chunk stored in it");
    if (!Compare()) return;
    test::Same(key, out_.as<float>(), out_.bytes(), !in_pairs_);
  }

 private:
  size_t Heads() const { return static_cast<size_t>(num_pools_) * static_cast<size_t>(l_.slots * s_.kv_heads); }
  size_t OwnHeads() const { return static_cast<size_t>(tokens_ * s_.kv_heads); }
  size_t Own(int r, int c, int j) const { return static_cast<size_t>((r * s_.columns + c) * s_.kv_heads + j); }
  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(s_.head_dim)); }
  float* Token(int r, int c) { return qkv_.as<float>() + (r * s_.columns + c) * stride_; }
  float* Key(int r, int c, int j) { return Token(r, c) + (s_.heads + j) * s_.head_dim; }
  float* Value(int r, int c, int j) { return Token(r, c) + (s_.heads + s_.kv_heads + j) * s_.head_dim; }
  size_t Head(int r, int p, int j) const {
    const int pool = l_.is_ring ? where_[static_cast<size_t>(r)] : where_[static_cast<size_t>(r * pages_ + p / l_.slots)];
    return static_cast<size_t>((pool * l_.slots + p % l_.slots) * s_.kv_heads + j);
  }
  void Remember(int r, int p) {
    std::vector<float> x(static_cast<size_t>(s_.head_dim));
    for (int j = 0; j < s_.kv_heads; ++j)
      for (Store* store : {&k_, &v_}) {
        for (float& number : x) number = random_.Between(-1.5f, 1.5f);
        store->Write(Head(r, p, j), x.data());
      }
  }
  static void Copy(const Store& from, Store& to) {
    std::memcpy(to.data.as<uint8_t>(), from.data.as<uint8_t>(), from.data.bytes());
    std::memcpy(to.scales.as<uint8_t>(), from.scales.as<uint8_t>(), from.scales.bytes());
  }

  // Fills want_ and bound_ for every real query.
  void Expect(const Store& k, const Store& v) {
    for (int r = 0; r < s_.rows; ++r)
      for (int c = 0; c < count_[static_cast<size_t>(r)]; ++c)
        for (int n = 0; n < s_.heads; ++n) ExpectQuery(k, v, r, c, n);
  }
  void ExpectQuery(const Store& k, const Store& v, int r, int c, int n) {
    const int H = s_.head_dim, j = n / (s_.heads / s_.kv_heads), start = start_[static_cast<size_t>(r)], last = start + c;
    const int first = l_.is_ring ? std::max(0, last - l_.window + 1) : 0;
    const float* q = Token(r, c) + n * H;
    // What a ring does not hold yet is rounded as it will be. Products of bf16 pairs: in chunks the scaled query too.
    const int count = count_[static_cast<size_t>(r)];
    const bool has_room = !l_.is_ring || start + count <= l_.slots || l_.slots >= l_.window + count - 1;
    const bool pairs = in_pairs_ && count > 1 && !(s_.columns <= 8 && has_room);
    std::vector<double> weight;
    double best = -1e300, total = 0, size = 0;
    const auto key = [&](int p, int h) {
      return l_.is_ring && p >= start ? own_k_.Read(Own(r, p - start, j), h) : k.Read(Head(r, p, j), h);
    };
    for (int p = first; p <= last; ++p) {
      double score = 0, of_terms = 0;
      for (int h = 0; h < H; ++h) {
        const double query = pairs ? Rounded(q[h] * Scale()) : static_cast<double>(q[h]) * static_cast<double>(Scale());
        const double term = query * key(p, h);
        score += term, of_terms += std::fabs(term);
      }
      weight.push_back(score), best = std::max(best, score), size = std::max(size, of_terms);
    }
    for (double& w : weight) total += w = std::exp(w - best);
    for (int h = 0; h < H; ++h) {
      double sum = 0, of_terms = 0;
      for (int p = first; p <= last; ++p) {
        const bool in_chunk = l_.is_ring && p >= start;
        const double value = in_chunk ? own_v_.Read(Own(r, p - start, j), h) : v.Read(Head(r, p, j), h);
        const double term = weight[static_cast<size_t>(p - first)] / total * value;
        sum += term, of_terms += std::fabs(term);
      }
      // docs/numerics.md: twice a score's error, two roundings of each weight, and the sums over keys. In pairs three
      // roundings a pair, and each weight rounded to bf16, where it is counted and where its value is.
      const double unit = std::ldexp(1.0, -24), keys = last - first + 1, more = pairs ? 1.5 : 1;
      want_.push_back(sum);
      bound_.push_back((2 * (more * H + 4) * unit * size + (more * std::min(keys, 64 + keys / 64) + 40) * unit +
                        (pairs ? 2 * 1.01 * std::ldexp(1.0, -8) : 0)) * of_terms + 1e-30);
    }
  }

  bool Compare() {
    const int width = s_.heads * s_.head_dim;
    size_t i = 0;
    for (int r = 0; r < s_.rows; ++r)
      for (int c = 0; c < s_.columns; ++c)
        for (int h = 0; h < width + 3; ++h) {
          const float got = out_.as<float>()[(r * s_.columns + c) * (width + 3) + h];
          if (h >= width) {
            if (!std::isnan(got)) return Fail("wrote between tokens"), false;
          } else if (c >= count_[static_cast<size_t>(r)]) {
            if (BitsOf(got) != 0) return Fail("row %d, padding column %d is not 0", r, c), false;
          } else if (!(std::fabs(got - want_[i]) <= bound_[i])) {
            return Fail("row %d, column %d, number %d: want %.9g +- %.2g, got %.9g", r, c, h, want_[i], bound_[i],
                        static_cast<double>(got)), false;
          } else {
            ++i;
          }
        }
    return true;
  }

  Shape s_;
  Layer l_;
  std::vector<int32_t> start_, count_, where_;
  Random random_;
  int tokens_, stride_, pages_, num_pools_;
  Memory qkv_, out_;
  Store k_, v_, k_after_, v_after_, own_k_, own_v_;
  std::vector<double> want_, bound_;
  bool in_pairs_ = false;
};

void Check(const Kernels& kernels, Pool& pool, const Shape& shape, const Layer& layer, int age, int missing) {
  std::vector<int32_t> start, count;
  for (int r = 0; r < shape.rows; ++r) {
    start.push_back(age + 3 * r);
    count.push_back(std::max(0, shape.columns - missing * (r + 1)));
  }
  char key[128];
  std::snprintf(key, sizeof(key), "attention %s %s %d, %dx%d heads %d/%d of %d, age %d, missing %d",
                kTypes[static_cast<int>(layer.type)], layer.is_ring ? "ring" : "pages", layer.is_ring ? layer.window : layer.slots,
                shape.rows, shape.columns, shape.heads, shape.kv_heads, shape.head_dim, age, missing);
  Case("%s %s, %d threads", kernels.isa, key, pool.size());
  Step step(shape, layer, start, count, static_cast<uint64_t>(age) * 64 + static_cast<uint64_t>(shape.columns));
  step.Run(kernels, pool, key);
}

}  // namespace

void TestAttention(const Kernels& kernels) {
  constexpr Shape kShapes[] = {{1, 1, 4, 1, 16}, {3, 1, 4, 2, 32}, {1, 1, 5, 1, 256}, {2, 1, 16, 1, 16}, {1, 2, 3, 3, 16},
                               {2, 5, 6, 2, 32}, {3, 8, 4, 2, 16}, {1, 16, 4, 1, 64}, {1, 40, 4, 1, 16}, {1, 70, 2, 2, 16}, {1, 3, 1, 1, 128}};
  Pool& pool = Pool::Get();
  for (KvType type : {KvType::kFloat32, KvType::kBf16, KvType::kInt8}) {
    for (const Shape& shape : kShapes) {
      for (int window : {1, 5, 16}) {
        for (int age : {0, 1, std::max(0, window - 2), window - 1, window, window + 1, 3 * window + 2})
          Check(kernels, pool, shape, {type, true, window, window}, age, 0);
        Check(kernels, pool, shape, {type, true, window, window + 3}, window + 7, shape.columns / 3);
        Check(kernels, pool, shape, {type, true, window, window + 7}, 2 * window + 9, shape.columns / 4);
      }
      for (int page : {1, 4, 16}) {
        for (int age : {0, page - 1, page, 70}) Check(kernels, pool, shape, {type, false, 0, page}, age, 0);
        Check(kernels, pool, shape, {type, false, 0, page}, 9, std::max(1, shape.columns / 3));
      }
    }
    // Long enough for several pieces, in decode and in a short chunk; a window of many blocks.
    for (int columns : {1, 2, 3}) {
      Check(kernels, pool, {1, columns, 4, 1, 16}, {type, false, 0, 16}, 2300, 0);
      Check(kernels, pool, {2, columns, 2, 2, 16}, {type, true, 700, 700}, 1500, 0);
    }
  }
}

}  // namespace gemworks::test
