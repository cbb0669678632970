// A device that holds a model and KV pools and runs batches. The engine touches memory and kernels
// only through this.
#ifndef KVIST_WORKER_BACKEND_BACKEND_H_
#define KVIST_WORKER_BACKEND_BACKEND_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/backend/batch.h"
#include "worker/kv/layout.h"
#include "worker/model/sampling_defaults.h"

namespace kvist::worker {

// Facts about a loaded model that others need.
struct ModelFacts {
  std::string name;            // general.name, or else the stem of the file's name
  std::string architecture;    // "llama", "gemma3", ...
  std::string fingerprint;     // SHA-256 of the file, hex
  int64_t vocab = 0;           // tokens of the file; its matrices may have more rows
  int64_t context_tokens = 0;  // the most positions this backend runs: min(model's, configured)
  int64_t parameters = 0;
  int64_t weight_bytes = 0;  // bytes read per decode step
  std::vector<LayerGroup> groups;
  SamplingDefaults sampling_defaults;  // of the file, for chats
};

// One KV pool of the backend: its arena has num_blocks blocks of layout.block_bytes().
struct PoolSpec {
  int32_t group = 0;  // index into ModelFacts::groups
  KvFormat format = KvFormat::kF16;
  int32_t num_blocks = 0;
  int64_t block_bytes = 0;
  int32_t block_tokens = 16;
};

// A part of the memory that a backend or an engine holds.
struct MemoryPart {
  const char* name = "";  // "weights", "kv", ...: the label of the metric kvist_memory_bytes
  int64_t bytes = 0;      // a backend's: of the system's memory, in whole pages
};

// Single-threaded: one caller at a time (the engine's loop); it may use threads of its own inside.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual const ModelFacts& model() const = 0;
  // Pools, ordered by (format in the configured order, group): pool index = position.
  virtual const std::vector<PoolSpec>& pools() const = 0;
  // What must be equal for two workers' KV bytes and logits to be interchangeable: backend, recipe
  // version, page layout.
  virtual std::string numerics_id() const = 0;
  // The path in use, for logs and metrics: "cpu/avx2, 2 threads, huge pages".
  virtual std::string description() const = 0;
  // All memory that grows with the model or the options, every byte in one part: it was taken when
  // the backend was made, and nothing is taken later. Constant.
  virtual std::vector<MemoryPart> memory() const = 0;

  // Runs the batch: writes the KV of all its tokens into their blocks and computes the wanted
  // logits. The same bits for a token whatever else is in the batch and however its sequence was
  // cut into slices. A batch that breaks a limit (context_tokens, vocab, max_batch_tokens, block
  // index out of range) or has two slices that write one block is INTERNAL and changes nothing.
  virtual absl::StatusOr<Logits> Run(const Batch& batch) = 0;
  // The most tokens in one batch.
  virtual int64_t max_batch_tokens() const = 0;
  // The most rows of logits in one batch.
  virtual int64_t max_logit_rows() const = 0;

  // Copies a whole block inside a pool (copy on write). REQUIRES: valid indices.
  virtual void CopyBlock(int32_t pool, int32_t from, int32_t to) = 0;
  // A block's bytes out of and into a pool (offload, snapshot, transfer). REQUIRES: sizes equal
  // block_bytes.
  virtual void ReadBlock(int32_t pool, int32_t block, std::span<std::byte> out) const = 0;
  virtual void WriteBlock(int32_t pool, int32_t block, std::span<const std::byte> bytes) = 0;
  // As ReadBlock for a block that leaves this process before it is full: positions from `tokens` on
  // read as zeros, whatever earlier owners of the block left there. REQUIRES: as ReadBlock, 0 <=
  // tokens <= block_tokens.
  virtual void ReadTokens(int32_t pool, int32_t block, int32_t tokens,
                          std::span<std::byte> out) const = 0;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_BACKEND_BACKEND_H_
