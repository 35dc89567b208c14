// What the native tests share: cases with names, random numbers, memory whose end is guarded, and results that must be
// the same on every run of a case. Declared here and compiled for any CPU: nothing of this is inline, since files that
// include it are compiled for instruction sets which this CPU may lack.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gemworks::test {

// Names what is being tested from here on, as printf does; failures print it. Counts as one case.
__attribute__((format(printf, 1, 2))) void Case(const char* format, ...);

// Reports a failure of the current case, as printf does. The program goes on, and stops after twenty.
__attribute__((format(printf, 1, 2))) void Fail(const char* format, ...);

int Cases();
int Failures();

// Fails unless these bytes are those that `key` had before; the first time they are kept. One key for all instruction
// sets and numbers of threads. Returns whether they are the same. `everywhere` false: a result that not every set has, which stays
// out of the checksum.
bool Same(const char* key, const void* data, size_t bytes, bool everywhere = true);
// A hash of everything given to Same, each key once: the same number on every machine.
uint64_t Checksum();

// xorshift64*: the same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed);
  uint32_t Bits();
  int Below(int n);
  float Between(float low, float high);
  void Fill(void* data, size_t bytes);

 private:
  uint64_t state_;
};

// Memory of exactly this size, 64-byte aligned: one byte past it is an error that AddressSanitizer reports.
class Memory {
 public:
  explicit Memory(size_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* data_;
  size_t bytes_;
};

uint32_t BitsOf(float x);
float FromBits(uint32_t bits);
// IEEE half -> float, written out.
float HalfToFloat(uint16_t half);

}  // namespace gemworks::test
