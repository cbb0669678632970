// A backend whose model is a hash: it really stores a value per position in the blocks of its arena
// and computes logits from what it reads back through the block tables. A wrong table, a lost copy,
// a stale block, a missing write or a wrong window changes the output.
#ifndef KVIST_TESTS_SUPPORT_HASH_BACKEND_H_
#define KVIST_TESTS_SUPPORT_HASH_BACKEND_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "worker/backend/backend.h"

namespace kvist::worker {

struct HashBackendOptions {
  std::vector<int64_t> windows = {0};  // one layer group each; 0: full
  std::vector<KvFormat> formats = {KvFormat::kF16};
  int32_t block_tokens = 16;
  int32_t num_blocks = 64;  // of each pool
  int64_t vocab = 64;
  int64_t context_tokens = 512;
  int64_t max_batch_tokens = 256;
  int64_t max_logit_rows = 64;
  float logit_span = 8.0f;
  // Above 0: greedy output mostly repeats itself after so many tokens, so that guesses are right;
  // one token in eight strays, wherever the hash says.
  int64_t repeat_tokens = 0;
  SamplingDefaults sampling_defaults;
  std::string numerics_id = "hash/1";
  std::string fingerprint = "hash-model";
};

// What a test sees and does while an engine owns the backend. Set before the engine runs.
struct HashBackendControl {
  std::function<void(const Batch&)> on_run;  // before each batch
  std::atomic<bool> fail_next_run{false};    // INTERNAL, nothing changed
  std::atomic<bool> nan_next_run{false};     // every logit is NaN
  std::atomic<uint64_t> copies{0};
  std::atomic<uint64_t> tokens{0};  // run in all batches
};

// The model by definition, without any blocks or batches: what every batch must give.
// Single-threaded.
class HashSequence {
 public:
  HashSequence(const HashBackendOptions& options, KvFormat format,
               const cache_manager::AttentionSpan& attention);
  void Append(int32_t token);
  // Of the token after those appended. REQUIRES: at least one was.
  std::vector<float> Logits() const;

 private:
  HashBackendOptions options_;
  KvFormat format_;
  cache_manager::AttentionSpan attention_;
  std::vector<std::vector<uint64_t>> slots_;  // by layer group and position
};

// Single-threaded. Refuses (INTERNAL) batches that break a limit, read a block that was given up or
// write one block from two slices.
class HashBackend final : public Backend {
 public:
  HashBackend(const HashBackendOptions& options, std::shared_ptr<HashBackendControl> control);

  const ModelFacts& model() const override { return facts_; }
  const std::vector<PoolSpec>& pools() const override { return pools_; }
  std::string numerics_id() const override { return options_.numerics_id; }
  std::string description() const override { return "hash of tokens, for tests"; }
  std::vector<MemoryPart> memory() const override { return {{"kv", kv_bytes_}}; }
  absl::StatusOr<Logits> Run(const Batch& batch) override;
  int64_t max_batch_tokens() const override { return options_.max_batch_tokens; }
  int64_t max_logit_rows() const override { return options_.max_logit_rows; }
  void CopyBlock(int32_t pool, int32_t from, int32_t to) override;
  void ReadBlock(int32_t pool, int32_t block, std::span<std::byte> out) const override;
  void WriteBlock(int32_t pool, int32_t block, std::span<const std::byte> bytes) override;
  void ReadTokens(int32_t pool, int32_t block, int32_t tokens,
                  std::span<std::byte> out) const override;

 private:
  absl::Status Check(const Batch& batch) const;
  absl::Status CheckSlice(const SequenceSlice& slice) const;
  size_t FirstPool(KvFormat format) const;
  uint64_t* Slot(size_t pool, std::span<const int32_t> table, int64_t position);

  HashBackendOptions options_;
  std::shared_ptr<HashBackendControl> control_;
  ModelFacts facts_;
  std::vector<PoolSpec> pools_;
  std::vector<std::vector<uint64_t>> arenas_;  // by pool: [block][position in the block]
  int64_t kv_bytes_ = 0;
  std::vector<float> logits_;
};

}  // namespace kvist::worker

#endif  // KVIST_TESTS_SUPPORT_HASH_BACKEND_H_
