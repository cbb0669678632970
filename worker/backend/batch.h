// What one step runs: plain data, filled by the scheduler and the engine, read by the backend.
#ifndef KVIST_WORKER_BACKEND_BATCH_H_
#define KVIST_WORKER_BACKEND_BATCH_H_

#include <cstdint>
#include <span>
#include <vector>

#include "cache_manager/attention_span.h"
#include "worker/kernels/kernel_table.h"

namespace kvist::worker {

struct ContiguousKv;

// Consecutive tokens of one sequence: a chunk of prefill, or one token of decode with the drafts
// behind it. Spans point into the engine's sequences and stay valid during the step.
struct SequenceSlice {
  std::span<const int32_t> tokens;  // [n] ids, n >= 1
  int64_t first_position = 0;       // absolute position of tokens[0]
  KvFormat kv_format = KvFormat::kF16;
  cache_manager::AttentionSpan attention;  // in layers without a window: SpanInLayers
  // Per layer group: the physical block of each logical block that covers positions [0,
  // first_position + n). -1 where the window has passed and the block was given up.
  std::vector<std::span<const int32_t>> block_tables;
  // Set: the KV is here and not in the pools, and there are no block tables. For the baseline of
  // `kvist bench kv-cache` (worker/kv/concat_cache.h) alone.
  const ContiguousKv* contiguous = nullptr;
  int64_t logits_from = 0;  // logits wanted for tokens[logits_from, n); n: none
};

struct Batch {
  std::vector<SequenceSlice> slices;

  int64_t TotalTokens() const {
    int64_t total = 0;
    for (const SequenceSlice& slice : slices) total += static_cast<int64_t>(slice.tokens.size());
    return total;
  }
};

// Logits [rows, vocab], rows in the order of the slices and, within one, of its tokens. Valid until
// the backend's next Run.
struct Logits {
  const float* data = nullptr;
  int64_t rows = 0;
  int64_t vocab = 0;
  int64_t stride = 0;  // floats between rows

  const float* row(int64_t r) const { return data + r * stride; }
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_BACKEND_BATCH_H_
