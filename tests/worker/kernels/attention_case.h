// A paged sequence with random keys and values, and the same attention in double arithmetic.
#ifndef KVIST_TESTS_WORKER_KERNELS_ATTENTION_CASE_H_
#define KVIST_TESTS_WORKER_KERNELS_ATTENTION_CASE_H_

#include <algorithm>
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

inline float RoundToFormat(KvFormat format, float value) {
  if (format == KvFormat::kF16) return HalfToFloat(FloatToHalf(value));
  if (format == KvFormat::kBF16) return Bf16ToFloat(FloatToBf16(value));
  return value;
}

// Pages in shuffled blocks of an arena in which every byte not written is 0xff: NaN in each format.
class PagedSequence {
 public:
  PagedSequence(const KernelTable& table, const AttentionShape& shape, std::mt19937& rng)
      : shape_(shape),
        element_(shape.format == KvFormat::kF32 ? 4 : 2),
        page_bytes_(2 * kPageTokens * shape.head_dim * element_),
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

 private:
  AttentionShape shape_;
  int64_t element_, page_bytes_, block_bytes_, blocks_;
  AlignedArray<std::byte> arena_;
  std::vector<int32_t> table_;

 public:
  std::vector<float> keys, values;  // [length, head_dim], before rounding to the format
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
                                          const PagedSequence& sequence, const float* q,
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
      dot +=
          static_cast<double>(q[d]) *
          RoundToFormat(shape.format, sequence.keys[static_cast<size_t>(p * shape.head_dim + d)]);
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
      out[static_cast<size_t>(d)] += weight * RoundToFormat(shape.format, sequence.values[at]);
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
