#include "check.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace gemworks::test {
namespace {

char g_case[256] = "";
int g_cases = 0;
int g_failures = 0;
std::map<std::string, uint64_t> g_seen, g_seen_here;

uint64_t Hash(uint64_t hash, const void* data, size_t bytes) {  // FNV-1a
  const uint8_t* p = static_cast<const uint8_t*>(data);
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ p[i]) * 0x100000001b3;
  return hash;
}
constexpr uint64_t kHashStart = 0xcbf29ce484222325;

}  // namespace

void Case(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(g_case, sizeof(g_case), format, arguments);
  va_end(arguments);
  ++g_cases;
}

void Fail(const char* format, ...) {
  std::fprintf(stderr, "FAILED  %s: ", g_case);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  if (++g_failures == 20) {
    std::fprintf(stderr, "stopped after 20 failures\n");
    std::exit(1);
  }
}

int Cases() { return g_cases; }
int Failures() { return g_failures; }

bool Same(const char* key, const void* data, size_t bytes, bool everywhere) {
  const uint64_t hash = Hash(kHashStart, data, bytes);
  const auto [found, is_new] = (everywhere ? g_seen : g_seen_here).emplace(key, hash);
  if (!is_new && found->second != hash) {
    Fail("not the bits that another instruction set or number of threads gave");
    return false;
  }
  return true;
}

uint64_t Checksum() {
  uint64_t hash = kHashStart;
  for (const auto& [key, value] : g_seen) {
    hash = Hash(hash, key.data(), key.size());
    hash = Hash(hash, &value, sizeof(value));
  }
  return hash;
}

Random::Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15 + 1) {}
uint32_t Random::Bits() {
  state_ ^= state_ >> 12;
  state_ ^= state_ << 25;
  state_ ^= state_ >> 27;
  return static_cast<uint32_t>((state_ * 0x2545f4914f6cdd1d) >> 32);
}
int Random::Below(int n) { return static_cast<int>((uint64_t{Bits()} * static_cast<uint32_t>(n)) >> 32); }
float Random::Between(float low, float high) {
  return low + (high - low) * (static_cast<float>(Bits() >> 8) * (1.0f / (1 << 24)));
}
void Random::Fill(void* data, size_t bytes) {
  uint8_t* p = static_cast<uint8_t*>(data);
  for (size_t i = 0; i < bytes; ++i) p[i] = static_cast<uint8_t>(Bits() >> 24);
}

Memory::Memory(size_t bytes) : data_(nullptr), bytes_(bytes) {
  void* p = nullptr;
  if (posix_memalign(&p, 64, bytes) != 0) std::abort();
  data_ = static_cast<uint8_t*>(p);
  std::memset(data_, 0xa5, bytes);  // whoever reads what nobody wrote gets this
}
Memory::~Memory() { std::free(data_); }

uint32_t BitsOf(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
float FromBits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
float HalfToFloat(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const float sign = half >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
}

}  // namespace gemworks::test
