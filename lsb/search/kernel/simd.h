// One vector of seeds against one row: the only code that knows an instruction set.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if defined(__AVX512VNNI__)

// 16 seeds a vector, four coordinates a step. `vpdpbusd` multiplies unsigned by signed bytes, so a
// seed's codes are stored with `offset` added and a row's bias takes it out again.
struct Simd {
  using Seed = uint8_t;
  using Row = int8_t;
  using Vector = __m512i;
  static constexpr int lanes = 16, step = 4, offset = 128, rows = 6, vectors = 4;
  static Vector set(int32_t x) { return _mm512_set1_epi32(x); }
  static Vector load(const void* p) { return _mm512_loadu_si512(p); }
  static void store(int32_t* p, Vector x) { _mm512_storeu_si512(p, x); }
  static Vector spread(const Row* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
  // GCC 12 spills accumulators around the intrinsic; the instruction itself it keeps in registers.
  static Vector multiply_add(Vector sum, Vector seed, Vector row) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(seed), "v"(row));
    return sum;
  }
  static uint64_t at_least(Vector x, const int32_t* wanted) {
    return _mm512_cmpge_epi32_mask(x, _mm512_loadu_si512(wanted));
  }
  static int32_t dot(const Seed* seed, const int8_t* row, int length) {
    Vector a = set(0), b = set(0);
    int i = 0;
    for (; i + 128 <= length; i += 128) {
      a = multiply_add(a, load(seed + i), load(row + i));
      b = multiply_add(b, load(seed + i + 64), load(row + i + 64));
    }
    for (; i < length; i += 64) a = multiply_add(a, load(seed + i), load(row + i));
    return _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
  }
  // What `offset` adds to a product with this row; length is a multiple of 64.
  static int32_t offset_of(const int8_t* row, int length) {
    const Vector offsets = _mm512_set1_epi8(static_cast<char>(offset));
    Vector sum = set(0);
    for (int i = 0; i < length; i += 64) sum = multiply_add(sum, offsets, load(row + i));
    return _mm512_reduce_add_epi32(sum);
  }
};

#elif defined(__AVX2__)

// 8 seeds a vector, two coordinates a step: codes are widened to 16 bits, because the byte product
// of AVX2 saturates.
struct Simd {
  using Seed = int16_t;
  using Row = int16_t;
  using Vector = __m256i;
  static constexpr int lanes = 8, step = 2, offset = 0, rows = 6, vectors = 2;
  static Vector set(int32_t x) { return _mm256_set1_epi32(x); }
  static Vector load(const void* p) { return _mm256_loadu_si256(static_cast<const Vector*>(p)); }
  static void store(int32_t* p, Vector x) { _mm256_storeu_si256(reinterpret_cast<Vector*>(p), x); }
  static Vector spread(const Row* p) {
    int32_t two;
    std::memcpy(&two, p, 4);
    return _mm256_set1_epi32(two);
  }
  static Vector multiply_add(Vector sum, Vector seed, Vector row) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(seed, row));
  }
  static uint64_t at_least(Vector x, const int32_t* wanted) {
    const Vector below = _mm256_cmpgt_epi32(load(wanted), x);
    return ~_mm256_movemask_ps(_mm256_castsi256_ps(below)) & 0xffu;
  }
  static int32_t dot(const Seed* seed, const int8_t* row, int length) {
    Vector a = set(0);
    for (int i = 0; i < length; i += 16) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i));
      a = multiply_add(a, load(seed + i), _mm256_cvtepi8_epi16(bytes));
    }
    __m128i x = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
    x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1));
    return _mm_cvtsi128_si32(x);
  }
  static int32_t offset_of(const int8_t*, int) { return 0; }
};

#else
#error "build for AVX-512 VNNI or AVX2"
#endif
