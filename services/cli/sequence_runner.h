// Sequences on a backend without an engine: each has its own blocks. For score and bench engine.
#ifndef KVIST_SERVICES_CLI_SEQUENCE_RUNNER_H_
#define KVIST_SERVICES_CLI_SEQUENCE_RUNNER_H_

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/backend/backend.h"
#include "worker/backend/cpu_backend.h"

namespace kvist::services {

// What a backend must have for `sequences` of `tokens_each`: sets context and blocks per pool.
struct SequenceSizes {
  int sequences = 1;
  int64_t tokens_each = 0;
};
void SizeFor(const SequenceSizes& sizes, worker::CpuBackendOptions* options);

// Single-threaded, as the backend, which it points to.
class SequenceRunner {
 public:
  // REQUIRES: the backend was made with SizeFor(sizes).
  SequenceRunner(worker::Backend* backend, const SequenceSizes& sizes);

  // One token of each sequence, sequence s at positions[s]; logits of all, row s of sequence s.
  absl::StatusOr<worker::Logits> Decode(std::span<const int32_t> tokens, int64_t position);
  // The sequence's tokens from position 0 on, in chunks. `on_logits` (may be empty) gets the logits
  // of each position in order, several rows at a time; without it only those of the last position
  // are computed.
  using OnLogits = std::function<void(int64_t first_position, const worker::Logits&)>;
  absl::Status Prefill(int sequence, std::span<const int32_t> tokens, const OnLogits& on_logits);

 private:
  std::vector<std::span<const int32_t>> TablesOf(int sequence) const;

  worker::Backend* const backend_;
  worker::KvFormat format_;
  std::vector<std::vector<std::vector<int32_t>>> tables_;  // [sequence][group][block]
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CLI_SEQUENCE_RUNNER_H_
