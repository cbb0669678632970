// The CPU backend: packed weights, KV arenas and scratch in memory taken at start, and a team of
// threads.
#ifndef KVIST_WORKER_BACKEND_CPU_BACKEND_H_
#define KVIST_WORKER_BACKEND_CPU_BACKEND_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/gguf/gguf_file.h"
#include "worker/backend/backend.h"
#include "worker/backend/kv_pools.h"

namespace kvist::worker {

struct CpuBackendOptions {
  int threads = 0;               // 0: one per core this process may use
  std::string kernels = "auto";  // "auto", "scalar", "avx2", "avx512vnni"
  // "native": packed as stored, activations quantised to 8 bits for block-quantised weights.
  // "float32": all weights dequantised at load, float activations (slow; the reference numerics,
  // its own numerics id).
  std::string weights = "native";
  int64_t context_tokens = 0;  // 0: the model's, capped at kDefaultContextTokens
  int32_t block_tokens = 16;
  std::vector<KvFormat> kv_formats = {KvFormat::kF16};
  int64_t kv_bytes = 0;  // all pools together; 0: a quarter of the memory available now
  // Overrides kv_bytes for tests: blocks per pool, the same in each.
  int32_t blocks_per_pool = 0;
  int64_t max_batch_tokens = 512;
  int64_t max_logit_rows = 64;
  // Called while loading with (bytes done, bytes in all).
  std::function<void(int64_t, int64_t)> progress;
};
inline constexpr int64_t kDefaultContextTokens = 8192;

// What a backend of these options asks of its pools, for a model whose own limit is
// `model_context_tokens`. kv_bytes stays 0 where DefaultKvBytes is to choose it.
KvPoolsOptions KvPoolsOptionsOf(const CpuBackendOptions& options, int64_t model_context_tokens);

// The threads of CpuBackendOptions::threads = 0: cores that this process may use, at least 1.
int UsableCores();

// Loads the model of `file` (which may be closed afterwards). INVALID_ARGUMENT naming the option,
// the metadata key or the tensor for anything wrong: unknown architecture, missing, extra or
// misshapen tensors. RESOURCE_EXHAUSTED if memory cannot be had.
absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const gguf::File& file,
                                                          const CpuBackendOptions& options);

}  // namespace kvist::worker

#endif  // KVIST_WORKER_BACKEND_CPU_BACKEND_H_
