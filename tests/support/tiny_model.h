// Tiny models of tests/golden/tiny as backends, and sequences that run on a backend without a
// scheduler.
#ifndef KVIST_TESTS_SUPPORT_TINY_MODEL_H_
#define KVIST_TESTS_SUPPORT_TINY_MODEL_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cache_manager/attention_span.h"
#include "worker/backend/backend.h"
#include "worker/backend/cpu_backend.h"

namespace kvist::testing {

// One thread, scalar kernels, native weights, 64 blocks of 16 tokens per pool, batches of up to 512
// tokens with as many rows of logits.
worker::CpuBackendOptions TinyOptions();

// Opens tests/golden/tiny/<name>.gguf, as in OpenTinyModel("llama_a.Q4_1"). Ends the test's process
// with the error if it cannot: a test without its model cannot go on.
std::unique_ptr<worker::Backend> OpenTinyModel(
    std::string_view name, const worker::CpuBackendOptions& options = TinyOptions());
// The same for any file.
std::unique_ptr<worker::Backend> OpenModel(const std::string& path,
                                           const worker::CpuBackendOptions& options);

// Hands out a backend's blocks to sequences, each block to one. Single-threaded.
class BlockSource {
 public:
  // With a seed other than 0, blocks come in a random order and hold garbage: NaNs and all other
  // bits.
  explicit BlockSource(worker::Backend& backend, uint64_t seed = 0);

  int32_t Take(int32_t pool);
  void GiveBack(int32_t pool, int32_t block);

 private:
  std::vector<std::vector<int32_t>> free_;  // per pool, taken from the back
};

// One sequence on a backend: its tokens so far and its block tables. Blocks go back to the source
// at the end. Single-threaded; backend and source outlive it.
class TestSequence {
 public:
  TestSequence(worker::Backend& backend, BlockSource& blocks, worker::KvFormat format,
               const cache_manager::AttentionSpan& attention = {});
  TestSequence(const TestSequence&) = delete;
  TestSequence& operator=(const TestSequence&) = delete;
  ~TestSequence();

  int64_t position() const { return position_; }
  // The slice that appends `tokens` (which outlive the step), with logits for the last
  // `logit_rows`. Blocks that no coming query sees are given up.
  worker::SequenceSlice Append(std::span<const int32_t> tokens, int64_t logit_rows);
  // Appends and runs alone: logits [logit_rows][vocab] of the last tokens.
  std::vector<std::vector<float>> Run(std::span<const int32_t> tokens, int64_t logit_rows);

 private:
  worker::Backend& backend_;
  BlockSource& blocks_;
  const worker::KvFormat format_;
  const cache_manager::AttentionSpan attention_;
  std::vector<int32_t> pools_;                // per group
  std::vector<std::vector<int32_t>> tables_;  // per group
  int64_t position_ = 0;
};

// The rows of `logits` as vectors.
std::vector<std::vector<float>> CopyLogits(const worker::Logits& logits);
// Runs a batch that must succeed.
std::vector<std::vector<float>> RunBatch(worker::Backend& backend, const worker::Batch& batch);

}  // namespace kvist::testing

#endif  // KVIST_TESTS_SUPPORT_TINY_MODEL_H_
