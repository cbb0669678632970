// A paged sequence with random keys and values, and the same attention in double arithmetic.
#ifndef KVIST_TESTS_WORKER_KERNELS_ATTENTION_CASE_H_
#define KVIST_TESTS_WORKER_KERNELS_ATTENTION_CASE_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "tests/worker/kernels/product_case.h"
#include "worker/kernels/kernel_table.h"

namespace kvist::worker {

struct AttentionShape {
  KvFormat format = KvFormat::kF16;
  int64_t head_dim = 64;
  int64_t heads = 3;
  int64_t length = 40;  // positions written
  int64_t block_tokens = 16;
  int64_t window = 0;
  int64_t sinks = 0;
};

template <typename T>
T ReadAt(const std::byte* page, int64_t offset) {
  T value;
  std::memcpy(&value, page + offset, sizeof(value));
  return value;
}

// Where a q4 page has the bytes of a slot, `stride` apart, and its scales: 16 slots per group, all
// steps before all minima, and keys' fifth bits behind them.
struct Q4Row {
  int64_t bytes, stride, scales;
  bool has_fifth_bits;
};
inline std::vector<double> ReadQ4(const std::byte* page, const Q4Row& row, int64_t dim,
                                  int64_t slot) {
  std::vector<double> values;
  for (int64_t d = 0; d < dim; ++d) {
    const auto byte = ReadAt<uint8_t>(page, row.bytes + (d / 32 * 16 + d % 16) * row.stride);
    int n = d % 32 < 16 ? byte & 15 : byte >> 4;
    if (row.has_fifth_bits) {
      const int64_t words = row.scales + 2 * dim;
      n += (ReadAt<uint16_t>(page, words + 2 * (d / 16 * 16 + slot)) >> d % 16 & 1) * 16;
    }
    const int64_t step = row.scales + 2 * (d / 32 * 16 + slot);
    const int64_t minimum = step + dim;
    values.push_back(static_cast<double>(n) * HalfToFloat(ReadAt<uint16_t>(page, step)) +
                     HalfToFloat(ReadAt<uint16_t>(page, minimum)));
  }
  return values;
}

// The scale of one element of a q8 page.
struct Q8Element {
  bool is_key;
  int64_t slot, dimension;
};
inline double Q8Scale(const std::byte* page, int64_t dim, const Q8Element& element) {
  const int64_t value_scales = 64 * CeilDiv(dim, int64_t{64});
  return ReadAt<float>(page, 32 * dim + (element.is_key ? 0 : value_scales) +
                                 4 * (element.dimension / 64 * 16 + element.slot));
}

// The Hadamard transform of kv_page.h, which is its own inverse.
template <typename T>
std::vector<double> Rotated(const std::vector<T>& x) {
  constexpr size_t span = 32;
  std::vector<double> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t first = i / span * span;
    for (size_t j = 0; j < span; ++j) {
      const double term = x[first + j];
      y[i] += std::popcount((i % span) & j) % 2 == 0 ? term : -term;
    }
    y[i] /= std::sqrt(static_cast<double>(span));
  }
  return y;
}

// What a page holds of a slot, read by the words of kv_page.h; q4's keys as they are stored.
inline std::vector<double> StoredKey(KvFormat format, int64_t dim, const std::byte* page,
                                     int64_t slot) {
  if (format == KvFormat::kQ4) return ReadQ4(page, {slot, 16, 16 * dim, true}, dim, slot);
  std::vector<double> row;
  for (int64_t at = slot; at < 16 * dim; at += 16) {
    if (format == KvFormat::kF32) row.push_back(ReadAt<float>(page, 4 * at));
    if (format == KvFormat::kF16) row.push_back(HalfToFloat(ReadAt<uint16_t>(page, 2 * at)));
    if (format == KvFormat::kBF16) row.push_back(Bf16ToFloat(ReadAt<uint16_t>(page, 2 * at)));
    if (format == KvFormat::kQ8) {
      row.push_back(Q8Scale(page, dim, {true, slot, at / 16}) * ReadAt<int8_t>(page, at));
    }
  }
  return row;
}
inline std::vector<double> StoredValue(KvFormat format, int64_t dim, const std::byte* page,
                                       int64_t slot) {
  if (format == KvFormat::kQ4) {
    return ReadQ4(page, {8 * dim + slot * dim / 2, 1, 20 * dim, false}, dim, slot);
  }
  std::vector<double> row;
  for (int64_t at = (16 + slot) * dim; at < (17 + slot) * dim; ++at) {
    if (format == KvFormat::kF32) row.push_back(ReadAt<float>(page, 4 * at));
    if (format == KvFormat::kF16) row.push_back(HalfToFloat(ReadAt<uint16_t>(page, 2 * at)));
    if (format == KvFormat::kBF16) row.push_back(Bf16ToFloat(ReadAt<uint16_t>(page, 2 * at)));
    if (format == KvFormat::kQ8) {
      row.push_back(Q8Scale(page, dim, {false, slot, at % dim}) * ReadAt<int8_t>(page, at));
    }
  }
  return row;
}

// Pages in shuffled blocks of an arena in which every byte not written is 0xff: NaN in each format.
class PagedSequence {
 public:
  PagedSequence(const KernelTable& table, const AttentionShape& shape, std::mt19937& rng)
      : shape_(shape),
        page_bytes_(KvPageLayoutOf(shape.format, shape.head_dim).bytes),
        block_bytes_(192 + (shape.block_tokens / kPageTokens) * (page_bytes_ + 64)),
        blocks_(CeilDiv(shape.length, shape.block_tokens)),
        arena_((blocks_ + 2) * block_bytes_),
        keys(static_cast<size_t>(shape.length * shape.head_dim)),
        values(keys.size()) {
    std::memset(arena_.data(), 0xff, static_cast<size_t>(arena_.size()));
    table_.resize(static_cast<size_t>(blocks_ + 2));
    std::iota(table_.begin(), table_.end(), 0);
    std::shuffle(table_.begin(), table_.end(), rng);
    table_.resize(static_cast<size_t>(blocks_));
    std::normal_distribution<float> normal(0.0f, 1.0f);
    for (float& k : keys) k = normal(rng);
    for (float& v : values) v = normal(rng);
    for (int64_t position = 0; position < shape.length; ++position) Write(table, position);
  }

  KvPages pages() {
    return {shape_.format,
            arena_.data(),
            table_.data(),
            block_bytes_,
            shape_.block_tokens / kPageTokens,
            128,
            page_bytes_ + 64};
  }
  void Write(const KernelTable& table, int64_t position) {
    const int64_t at = position * shape_.head_dim;
    table.store_kv({pages(), shape_.head_dim, position, keys.data() + at, values.data() + at});
  }
  std::span<const std::byte> arena() { return arena_.span(); }
  // Keys and values [length, head_dim] as read back from the pages.
  struct StoredRows {
    std::vector<double> keys, values;
  };
  StoredRows Stored() const {
    StoredRows rows;
    for (int64_t position = 0; position < shape_.length; ++position) {
      const std::byte* page = PageOf(position);
      const int64_t slot = position % kPageTokens;
      std::vector<double> key = StoredKey(shape_.format, shape_.head_dim, page, slot);
      if (shape_.format == KvFormat::kQ4) key = Rotated(key);
      const std::vector<double> value = StoredValue(shape_.format, shape_.head_dim, page, slot);
      rows.keys.insert(rows.keys.end(), key.begin(), key.end());
      rows.values.insert(rows.values.end(), value.begin(), value.end());
    }
    return rows;
  }

 private:
  const std::byte* PageOf(int64_t position) const {
    const int64_t block = table_[static_cast<size_t>(position / shape_.block_tokens)];
    return arena_.data() + block * block_bytes_ + 128 +
           position % shape_.block_tokens / kPageTokens * (page_bytes_ + 64);
  }

  AttentionShape shape_;
  int64_t page_bytes_, block_bytes_, blocks_;
  AlignedArray<std::byte> arena_;
  std::vector<int32_t> table_;

 public:
  std::vector<float> keys, values;  // [length, head_dim], as given
};

// Attention of queries [first, first + queries) but for where it goes: out and scratch.
inline AttentionTask TaskOf(const AttentionShape& shape, PagedSequence& sequence,
                            const std::vector<float>& q, int64_t first, int64_t queries) {
  const int64_t stride = shape.heads * shape.head_dim;
  AttentionTask task;
  task.kv = sequence.pages();
  task.head_dim = shape.head_dim;
  task.heads = shape.heads;
  task.queries = queries;
  task.first_position = first;
  task.window = shape.window;
  task.sinks = shape.sinks;
  task.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  task.q = q.data() + first * stride;
  task.q_stride = stride;
  return task;
}

// Attention of queries [first, first + count), `per_task` queries at a time. q and the result are
// [length, heads, head_dim].
inline std::vector<float> RunAttention(const KernelTable& table, const AttentionShape& shape,
                                       PagedSequence& sequence, const std::vector<float>& q,
                                       int64_t first, int64_t count, int64_t per_task) {
  const int64_t stride = shape.heads * shape.head_dim;
  std::vector<float> out(static_cast<size_t>(count * stride), -7.0f);
  for (int64_t done = 0; done < count; done += per_task) {
    const int64_t queries = std::min(per_task, count - done);
    AlignedArray<float> scratch(AttentionScratchFloats(shape.head_dim, shape.heads, queries));
    AttentionTask task = TaskOf(shape, sequence, q, first + done, queries);
    task.out = out.data() + done * stride;
    task.out_stride = stride;
    task.scratch = scratch.data();
    table.attention(task);
  }
  return out;
}

// out[head_dim] of one query and head.
inline std::vector<double> NaiveAttention(const AttentionShape& shape,
                                          const PagedSequence::StoredRows& stored, const float* q,
                                          int64_t position) {
  const int64_t first = shape.window > 0 ? std::max<int64_t>(0, position - shape.window + 1) : 0;
  const double scale = 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
  std::vector<double> scores;
  std::vector<int64_t> seen;
  for (int64_t p = 0; p <= position; ++p) {
    if (p < first && p >= shape.sinks) continue;
    seen.push_back(p);
    double dot = 0;
    for (int64_t d = 0; d < shape.head_dim; ++d) {
      dot += static_cast<double>(q[d]) * stored.keys[static_cast<size_t>(p * shape.head_dim + d)];
    }
    scores.push_back(dot * scale);
  }
  const double largest = *std::max_element(scores.begin(), scores.end());
  std::vector<double> out(static_cast<size_t>(shape.head_dim));
  double sum = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    const double weight = std::exp(scores[i] - largest);
    sum += weight;
    for (int64_t d = 0; d < shape.head_dim; ++d) {
      const auto at = static_cast<size_t>(seen[i] * shape.head_dim + d);
      out[static_cast<size_t>(d)] += weight * stored.values[at];
    }
  }
  for (double& o : out) o /= sum;
  return out;
}

inline std::vector<float> RandomFloats(int64_t n, std::mt19937& rng) {
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> out(static_cast<size_t>(n));
  for (float& v : out) v = normal(rng);
  return out;
}

}  // namespace kvist::worker

#endif  // KVIST_TESTS_WORKER_KERNELS_ATTENTION_CASE_H_
