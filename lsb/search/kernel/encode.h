// Rows to int8 codes and prefixes with measured errors; lsb/search/projection.py is the reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "simd.h"

constexpr int panel_seeds = Simd::lanes * Simd::vectors;
constexpr int code_limit = 127;
constexpr float slack = 2e-6f;  // float32 rounding of the bounds themselves
constexpr int32_t everything = std::numeric_limits<int32_t>::min();
constexpr int32_t nothing = std::numeric_limits<int32_t>::max();
constexpr float up = 1.0f + 1e-5f;  // rounds a measured error up

// ---- what Python hands over (ctypes.Structure of the same names in library.py)
// --------------------

extern "C" {

struct Projection {
  int32_t dimension;    // D
  int32_t padded;       // D rounded up: length of a row's codes
  int32_t prefix;       // coordinates of a prefix, P; 0: codes of whole vectors are the prefix
  int32_t augmented;    // of these, the last ones that carry the residual
  float step;           // of codes
  float weight_scale;   // product of codes and weights -> coordinate of the prefix
  float prefix_step;    // of prefix codes
  const void* weights;  // packed (padded, P) codes of the projection, rows of norm <= 1
};

struct Queries {
  int32_t count;            // Q
  int32_t panels;           // of panel_seeds seeds each
  const float* vectors;     // (Q, D)
  const void* packed;       // panels of prefix codes
  const float* error;       // (Q,) largest error of a prefix product that the seed's codes cause
  float scale;              // prefix product of codes -> score
  const void* codes;        // (Q, padded) codes of whole vectors, with Simd::offset
  const float* code_error;  // (Q,) the same for products of whole vectors
  float code_scale;
  float norm;         // no seed is longer
  float float_error;  // largest error of a float32 product
};

struct Rows {
  int64_t count;
  int64_t first_row;
  const uint8_t* ids;       // (n, 16)
  const uint8_t* excluded;  // (n,) or null
  const void* vectors;      // (n, D) float32, or float16 if half
  int32_t half;
  const int8_t* codes;      // (n, padded), or null: made here
  const float* code_error;  // (n,)
  const int8_t* prefix;     // (n, P), or null: made here
  const float* prefix_error;
};

int32_t scan_lanes() { return Simd::lanes; }
int32_t scan_step() { return Simd::step; }
int32_t scan_offset() { return Simd::offset; }
int32_t scan_panel() { return panel_seeds; }

}  // extern "C"

namespace {

void widen(const uint16_t* half, float* out, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(out + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i))));
  for (; i < n; i++) out[i] = _cvtsh_ss(half[i]);
}

float dot(const float* a, const float* b, int n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

// lsb/search/rescore.py: products are exact in double, padded with zeros to a power of two, summed
// by halving, rounded once. `terms` has room for a power of two below n.
float rescore(const float* a, const float* b, int n, double* terms) {
  int half = 1;
  while (2 * half < n) half *= 2;
  if (n == 1) half = 1;
  const int upper = n - half;
  for (int i = 0; i < upper; i++)
    terms[i] = double(a[i]) * double(b[i]) + double(a[half + i]) * double(b[half + i]);
  for (int i = upper; i < half; i++) terms[i] = double(a[i]) * double(b[i]);
  while (half > 1) {
    half /= 2;
    for (int i = 0; i < half; i++) terms[i] += terms[half + i];
  }
  return static_cast<float>(terms[0] + 0.0);
}

// Codes of one vector: rint(x / step) within +-code_limit, zeros behind it up to `padded`.
// Returns (error norm squared, squared sum of codes).
void quantise(const float* x, int n, int padded, float step, int8_t* codes, float* error,
              int64_t* square) {
  const float inverse = 1 / step;
  float missed = 0;
  int32_t sum = 0;
#pragma omp simd reduction(+ : missed, sum)
  for (int i = 0; i < n; i++) {
    float z = std::nearbyintf(x[i] * inverse);
    z = std::min(std::max(z, float(-code_limit)), float(code_limit));
    const float left = x[i] - z * step;
    missed += left * left;
    const int32_t code = static_cast<int32_t>(z);
    sum += code * code;
    codes[i] = static_cast<int8_t>(code);
  }
  for (int i = n; i < padded; i++) codes[i] = 0;
  *error = std::sqrt(missed) * up;
  *square = sum;
}

// Products of one row with `lanes * vectors` packed vectors, written out: the projection.
template <int R>
void products(const Simd::Row* const* rows, const int32_t* bias, const Simd::Seed* packed,
              int length, int32_t* out, int stride) {
  constexpr int C = Simd::vectors;
  Simd::Vector sum[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) sum[r][c] = Simd::set(bias[r]);
  for (int k = 0; k < length; k += Simd::step) {
    Simd::Vector weights[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) weights[c] = Simd::load(packed + c * Simd::lanes * Simd::step);
    packed += panel_seeds * Simd::step;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const Simd::Vector spread = Simd::spread(rows[r] + k);
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) sum[r][c] = Simd::multiply_add(sum[r][c], weights[c], spread);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) Simd::store(out + r * stride + c * Simd::lanes, sum[r][c]);
}

// Codes and prefixes of some rows, with the errors they make.
struct Encoder {
  const Projection& of;
  std::vector<float> row;
  std::vector<int32_t> products_out;
  std::vector<Simd::Row> wide;

  explicit Encoder(const Projection& projection)
      : of(projection),
        row(projection.dimension),
        products_out(size_t(Simd::rows) * panels() * panel_seeds),
        wide(Simd::offset ? 0 : size_t(Simd::rows) * projection.padded) {}

  int panels() const { return (of.prefix + panel_seeds - 1) / panel_seeds; }

  // rows [begin, end) of `rows` into codes, code_error, prefix, prefix_error, which start at row 0.
  void encode(const Rows& rows, int64_t begin, int64_t end, int8_t* codes, float* code_error,
              int8_t* prefix, float* prefix_error) {
    for (int64_t first = begin; first < end; first += Simd::rows) {
      const int n = static_cast<int>(std::min<int64_t>(Simd::rows, end - first));
      int64_t square[Simd::rows];
      for (int r = 0; r < n; r++) {
        const float* x;
        if (rows.half) {
          widen(static_cast<const uint16_t*>(rows.vectors) + (first + r) * of.dimension, row.data(),
                of.dimension);
          x = row.data();
        } else {
          x = static_cast<const float*>(rows.vectors) + (first + r) * of.dimension;
        }
        quantise(x, of.dimension, of.padded, of.step, codes + (first + r - begin) * of.padded,
                 code_error + (first + r - begin), &square[r]);
      }
      if (of.prefix)
        project(codes + (first - begin) * of.padded, n, square, code_error + (first - begin),
                prefix + (first - begin) * of.prefix, prefix_error + (first - begin));
    }
  }

 private:
  void project(const int8_t* codes, int n, const int64_t* square, const float* code_error,
               int8_t* prefix, float* prefix_error) {
    const Simd::Row* rows[Simd::rows];
    int32_t bias[Simd::rows];
    for (int r = 0; r < Simd::rows; r++) {
      const int8_t* source = codes + size_t(std::min(r, n - 1)) * of.padded;
      if constexpr (Simd::offset != 0) {
        rows[r] = reinterpret_cast<const Simd::Row*>(source);
        bias[r] = -Simd::offset_of(source, of.padded);
      } else {
        Simd::Row* target = wide.data() + size_t(r) * of.padded;
        for (int i = 0; i < of.padded; i++) target[i] = source[i];
        rows[r] = target;
        bias[r] = 0;
      }
    }
    const int stride = panels() * panel_seeds;
    for (int panel = 0; panel < panels(); panel++)
      products<Simd::rows>(
          rows, bias,
          static_cast<const Simd::Seed*>(of.weights) + size_t(panel) * panel_seeds * of.padded,
          of.padded, products_out.data() + panel * panel_seeds, stride);
    const int inside = of.prefix - of.augmented;
    std::vector<float>& y = row;
    if (int(y.size()) < of.prefix) y.resize(of.prefix);
    for (int r = 0; r < n; r++) {
      const int32_t* product = products_out.data() + size_t(r) * stride;
      double length = 0;
#pragma omp simd reduction(+ : length)
      for (int i = 0; i < inside; i++) {
        const double coordinate = double(product[i]) * of.weight_scale;
        length += coordinate * coordinate;
        y[i] = static_cast<float>(coordinate);
      }
      const double whole = double(square[r]) * of.step * of.step;
      const float outside =
          static_cast<float>(std::sqrt((std::max(whole - length, 0.0) + 1e-12) / of.augmented)) *
          up;
      for (int i = inside; i < of.prefix; i++) y[i] = outside;
      int64_t unused;
      float missed;
      quantise(y.data(), of.prefix, of.prefix, of.prefix_step, prefix + size_t(r) * of.prefix,
               &missed, &unused);
      prefix_error[r] = missed + code_error[r];
    }
  }
};

}  // namespace
