// Exact threshold scan of int8 codes. Built and called by lsb/search/kernel/library.py, which also
// says what the arrays are; lsb/search/bounds.md has the proof of the bounds.
//
// A row of a block is compared with a seed in up to four steps, each of which may drop the pair
// only by a bound that holds for exact real arithmetic:
//   1. int8 product of prefixes, whose last coordinates carry what lies outside the prefix,
//   2. int8 product of whole vectors,
//   3. float32 product,
//   4. the rescoring kernel of lsb/search/rescore.py, bit for bit: what it says counts.
// One source for all instruction sets: the compiler's flags choose the `Simd` below.

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "encode.h"
#include "simd.h"

namespace {

struct Id {
  uint64_t high, low;
  bool operator<(const Id& other) const {
    return high != other.high ? high < other.high : low < other.low;
  }
  bool operator==(const Id& other) const { return high == other.high && low == other.low; }
};

Id load_id(const uint8_t* bytes) {
  Id id;
  std::memcpy(&id, bytes, 16);
  return {__builtin_bswap64(id.high), __builtin_bswap64(id.low)};
}

struct Hit {
  float score;
  int64_t row;
  Id id;
};

bool better(const Hit& a, const Hit& b) {
  return a.score != b.score ? a.score > b.score : a.id < b.id;
}

struct Candidate {
  int32_t seed, row;
};

// Products of `Simd::rows` rows with C vectors of lanes; for each row and vector which lanes reach
// what is wanted. Returns whether any does.
template <int C>
bool tile(const Simd::Row* const* rows, const int32_t* bias, const Simd::Seed* packed, int length,
          const int32_t* wanted, uint64_t* reached) {
  Simd::Vector sum[Simd::rows][C];
#pragma GCC unroll 8
  for (int r = 0; r < Simd::rows; r++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) sum[r][c] = Simd::set(bias[r]);
  const Simd::Row* x[Simd::rows];
#pragma GCC unroll 8
  for (int r = 0; r < Simd::rows; r++) x[r] = rows[r];
  for (int k = 0; k < length; k += Simd::step) {
    Simd::Vector seeds[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) seeds[c] = Simd::load(packed + c * Simd::lanes * Simd::step);
    packed += C * Simd::lanes * Simd::step;
#pragma GCC unroll 8
    for (int r = 0; r < Simd::rows; r++) {
      const Simd::Vector spread = Simd::spread(x[r] + k);
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) sum[r][c] = Simd::multiply_add(sum[r][c], seeds[c], spread);
    }
  }
  uint64_t any = 0;
#pragma GCC unroll 8
  for (int r = 0; r < Simd::rows; r++) {
    uint64_t lanes = 0;
#pragma GCC unroll 4
    for (int c = 0; c < C; c++)
      lanes |= Simd::at_least(sum[r][c], wanted + c * Simd::lanes) << (c * Simd::lanes);
    any |= reached[r] = lanes;
  }
  return any != 0;
}

// Ask for memory that is read soon.
void fetch(const void* memory, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(memory) + i);
}

// The lists of all seeds.
struct Scan {
  int32_t count, limit;
  double floor;
  std::vector<std::vector<Hit>> hits;
  std::vector<float> bound;
  std::vector<Id> ids;

  double wanted(int32_t seed) const { return std::max(floor, double(bound[seed])); }

  // Keep a hit. A list is cut when it is half as long again as it may be, and grows no further.
  void keep(int32_t seed, const Hit& hit) {
    auto& list = hits[seed];
    const size_t most = size_t(limit) + std::max(16, limit / 2);
    if (list.size() == list.capacity()) list.reserve(std::min(most, 2 * list.size() + 4));
    list.push_back(hit);
    if (list.size() >= most) cut(seed);
  }

  bool cut(int32_t seed) {
    auto& list = hits[seed];
    std::nth_element(list.begin(), list.begin() + (limit - 1), list.end(), better);
    list.resize(limit);
    const float worst = list[limit - 1].score;
    if (!(worst > bound[seed])) return false;
    bound[seed] = worst;
    return true;
  }
};

struct Counters {
  std::atomic<int64_t> prefix{0}, codes{0}, rescored{0};
};

// One call of scan_add: the working memory of all threads.
struct Work {
  Scan& scan;
  const Projection& projection;
  const Queries& queries;
  const Rows& rows;
  int length;  // of what is multiplied in step 1
  std::vector<int8_t> codes, prefix;
  std::vector<float> code_error, prefix_error;
  std::vector<Simd::Row> wide;  // step 1 operands where they are not the codes themselves
  std::vector<const Simd::Row*> operands;
  std::vector<int32_t> bias, code_bias;
  Counters counters;

  const int8_t* block_codes(int64_t begin) const {
    return rows.codes ? rows.codes + begin * projection.padded : codes.data();
  }
  const float* block_code_error(int64_t begin) const {
    return rows.codes ? rows.code_error + begin : code_error.data();
  }
  const int8_t* block_prefix(int64_t begin) const {
    return rows.prefix ? rows.prefix + begin * projection.prefix : prefix.data();
  }
  const float* block_prefix_error(int64_t begin) const {
    return rows.prefix ? rows.prefix_error + begin : prefix_error.data();
  }

  void prepare(Encoder& encoder, int64_t begin, int from, int to) {
    const int padded = projection.padded;
    if (!rows.codes && from < to)
      encoder.encode(rows, begin + from, begin + to, codes.data() + size_t(from) * padded,
                     code_error.data() + from,
                     projection.prefix ? prefix.data() + size_t(from) * projection.prefix : nullptr,
                     prefix_error.data() + from);
    const int8_t* all_codes = block_codes(begin);
    const int8_t* step1 = projection.prefix ? block_prefix(begin) : all_codes;
    const float* error = projection.prefix ? block_prefix_error(begin) : block_code_error(begin);
    for (int i = from; i < to; i++) {
      const int8_t* row = step1 + size_t(i) * length;
      if constexpr (Simd::offset != 0) {
        operands[i] = reinterpret_cast<const Simd::Row*>(row);
      } else {
        Simd::Row* target = wide.data() + size_t(i) * length;
        for (int k = 0; k < length; k++) target[k] = row[k];
        operands[i] = target;
      }
      const int32_t shift = -Simd::offset_of(row, length);
      // A row whose error is larger than any score passes everywhere.
      const float extra = std::ceil(std::min(error[i] * queries.norm, 4.0f) / queries.scale) + 1;
      bias[i] = shift + static_cast<int32_t>(std::min(extra, 1e9f));
      if (projection.prefix)
        code_bias[i] = -Simd::offset_of(all_codes + size_t(i) * padded, padded);
    }
  }

  int32_t threshold(int32_t seed) const {
    if (seed >= scan.count) return nothing;
    const double wanted = scan.wanted(seed);
    if (wanted < -8) return everything;
    return static_cast<int32_t>(std::floor((wanted - queries.error[seed] - slack) / queries.scale));
  }

  void panel(int64_t begin, int n, int number, std::vector<Candidate>& found, double* terms,
             float* float_row) {
    int32_t wanted[panel_seeds];
    const int first = number * panel_seeds;
    for (int i = 0; i < panel_seeds; i++) wanted[i] = threshold(first + i);
    const auto* packed =
        static_cast<const Simd::Seed*>(queries.packed) + size_t(number) * panel_seeds * length;
    constexpr int C = Simd::vectors;
    uint64_t reached[Simd::rows];
    found.clear();
    for (int i = 0; i < n; i += Simd::rows) {
      const Simd::Row* x[Simd::rows];
      int32_t b[Simd::rows];
      for (int r = 0; r < Simd::rows; r++) {
        x[r] = operands[std::min(i + r, n - 1)];
        b[r] = bias[std::min(i + r, n - 1)];
      }
      if (!tile<C>(x, b, packed, length, wanted, reached)) continue;
      for (int r = 0; r < Simd::rows && i + r < n; r++)
        for (uint64_t mask = reached[r]; mask; mask &= mask - 1)
          found.push_back({first + __builtin_ctzll(mask), i + r});
      // Many at once: take them now, so that the seeds' bounds rise and fewer follow.
      if (found.size() > 8192) {
        take(begin, found, terms, float_row);
        for (int s = 0; s < panel_seeds; s++) wanted[s] = threshold(first + s);
      }
    }
    take(begin, found, terms, float_row);
  }

  void take(int64_t begin, std::vector<Candidate>& found, double* terms, float* float_row) {
    if (found.empty()) return;
    counters.prefix.fetch_add(found.size(), std::memory_order_relaxed);
    if (projection.prefix) keep_by_codes(begin, found);
    int64_t rescored = 0;
    const int d = projection.dimension;
    const size_t bytes = size_t(d) * (rows.half ? 2 : 4);
    const auto* stored = static_cast<const char*>(rows.vectors) + begin * int64_t(bytes);
    for (size_t number = 0; number < found.size(); number++) {
      const Candidate& pair = found[number];
      if (number + 2 < found.size()) fetch(stored + found[number + 2].row * bytes, bytes);
      const int64_t row = begin + pair.row;
      const float* x = static_cast<const float*>(rows.vectors) + row * d;
      if (rows.half) {
        widen(static_cast<const uint16_t*>(rows.vectors) + row * d, float_row, d);
        x = float_row;
      }
      const float* q = queries.vectors + int64_t(pair.seed) * d;
      if (double(dot(x, q, d)) + queries.float_error < scan.wanted(pair.seed)) continue;
      if (rows.excluded && rows.excluded[row]) continue;
      const Id id = load_id(rows.ids + 16 * row);
      if (id == scan.ids[pair.seed]) continue;
      rescored++;
      const float score = rescore(x, q, d, terms);
      if (!(double(score) >= scan.floor) || score < scan.bound[pair.seed]) continue;
      scan.keep(pair.seed, {score, rows.first_row + row, id});
    }
    counters.rescored.fetch_add(rescored, std::memory_order_relaxed);
    found.clear();
  }

  void keep_by_codes(int64_t begin, std::vector<Candidate>& found) {
    const int padded = projection.padded;
    const int8_t* all = block_codes(begin);
    const float* error = block_code_error(begin);
    const auto* seeds = static_cast<const Simd::Seed*>(queries.codes);
    size_t kept = 0;
    for (size_t number = 0; number < found.size(); number++) {
      const Candidate pair = found[number];
      if (number + 4 < found.size()) fetch(all + size_t(found[number + 4].row) * padded, padded);
      const int32_t product =
          Simd::dot(seeds + int64_t(pair.seed) * padded, all + int64_t(pair.row) * padded, padded) +
          code_bias[pair.row];
      const float most = float(product) * queries.code_scale + error[pair.row] * queries.norm +
                         queries.code_error[pair.seed] + slack;
      if (double(most) >= scan.wanted(pair.seed)) found[kept++] = pair;
    }
    found.resize(kept);
    counters.codes.fetch_add(kept, std::memory_order_relaxed);
  }
};

}  // namespace

extern "C" {

void* scan_new(int32_t count, int32_t limit, double floor, const uint8_t* ids) {
  auto* scan = new Scan{count, limit, floor, {}, {}, {}};
  scan->hits.resize(count);
  scan->bound.assign(count, -std::numeric_limits<float>::infinity());
  scan->ids.reserve(count);
  for (int32_t i = 0; i < count; i++) scan->ids.push_back(load_id(ids + 16 * int64_t(i)));
  return scan;
}

void scan_free(void* scan) { delete static_cast<Scan*>(scan); }

// Running bounds: the worst score of each full list, or what was given to scan_raise if larger.
void scan_bound(void* handle, float* bound) {
  auto& scan = *static_cast<Scan*>(handle);
  for (int32_t i = 0; i < scan.count; i++) {
    if (int(scan.hits[i].size()) >= scan.limit) scan.cut(i);
    bound[i] = scan.bound[i];
  }
}

void scan_raise(void* handle, const float* bound) {
  auto& scan = *static_cast<Scan*>(handle);
  for (int32_t i = 0; i < scan.count; i++) scan.bound[i] = std::max(scan.bound[i], bound[i]);
}

void scan_encode(const Projection* projection, const Rows* rows, int8_t* codes, float* code_error,
                 int8_t* prefix, float* prefix_error, int32_t threads) {
  std::vector<std::thread> others;
  auto work = [&](int32_t number) {
    const int64_t begin = rows->count * number / threads,
                  end = rows->count * (number + 1) / threads;
    Encoder encoder(*projection);
    encoder.encode(*rows, begin, end, codes + begin * projection->padded, code_error + begin,
                   projection->prefix ? prefix + begin * projection->prefix : nullptr,
                   prefix_error + begin);
  };
  for (int32_t t = 1; t < threads; t++) others.emplace_back(work, t);
  work(0);
  for (auto& thread : others) thread.join();
}

// Compare all rows with all seeds. `counters` (3,) gets the pairs that passed prefixes, whole
// codes, and were rescored.
void scan_add(void* handle, const Projection* projection, const Queries* queries, const Rows* rows,
              int32_t rows_at_a_time, int32_t threads, int64_t* counters) {
  auto& scan = *static_cast<Scan*>(handle);
  const int length = projection->prefix ? projection->prefix : projection->padded;
  const size_t n = std::min<int64_t>(rows_at_a_time, rows->count);
  Work work{scan, *projection, *queries, *rows, length, {}, {}, {}, {}, {}, {}, {}, {}, {}};
  if (!rows->codes) {
    work.codes.resize(n * projection->padded);
    work.code_error.resize(n);
    work.prefix.resize(n * projection->prefix);
    work.prefix_error.resize(n);
  }
  if (!Simd::offset) work.wide.resize(n * length);
  work.operands.resize(n);
  work.bias.resize(n);
  work.code_bias.resize(n);

  std::atomic<int32_t> next{0};
  std::barrier meet(threads, [&]() noexcept { next = 0; });
  auto run = [&](int32_t number) {
    Encoder encoder(*projection);
    std::vector<Candidate> found;
    std::vector<double> terms(projection->dimension + 1);
    std::vector<float> float_row(projection->dimension);
    // While lists are not full everything passes, so the first blocks are small.
    int64_t step = std::min<int64_t>(rows_at_a_time, 128);
    for (int64_t begin = 0; begin < rows->count;
         begin += step, step = std::min<int64_t>(rows_at_a_time, 2 * step)) {
      const int size = static_cast<int>(std::min(step, rows->count - begin));
      work.prepare(encoder, begin, size * number / threads, size * (number + 1) / threads);
      meet.arrive_and_wait();
      for (int32_t panel = next++; panel < queries->panels; panel = next++)
        work.panel(begin, size, panel, found, terms.data(), float_row.data());
      meet.arrive_and_wait();
    }
  };
  std::vector<std::thread> others;
  for (int32_t t = 1; t < threads; t++) others.emplace_back(run, t);
  run(0);
  for (auto& thread : others) thread.join();
  counters[0] += work.counters.prefix;
  counters[1] += work.counters.codes;
  counters[2] += work.counters.rescored;
}

// Entries of each list, cut and ordered: (count,) sizes; their sum is returned.
int64_t scan_finish(void* handle, int64_t* sizes) {
  auto& scan = *static_cast<Scan*>(handle);
  int64_t total = 0;
  for (int32_t i = 0; i < scan.count; i++) {
    auto& list = scan.hits[i];
    if (int(list.size()) > scan.limit) scan.cut(i);
    std::sort(list.begin(), list.end(), better);
    sizes[i] = list.size();
    total += sizes[i];
  }
  return total;
}

void scan_take(void* handle, float* score, int64_t* row, uint8_t* ids) {
  auto& scan = *static_cast<Scan*>(handle);
  for (auto& list : scan.hits)
    for (const Hit& hit : list) {
      *score++ = hit.score;
      *row++ = hit.row;
      const uint64_t words[2] = {__builtin_bswap64(hit.id.high), __builtin_bswap64(hit.id.low)};
      std::memcpy(ids, words, 16);
      ids += 16;
    }
}

}  // extern "C"
