// How a model file wants its chats sampled, from the metadata keys general.sampling.* (ggml's
// docs/gguf.md).
#ifndef KVIST_WORKER_MODEL_SAMPLING_DEFAULTS_H_
#define KVIST_WORKER_MODEL_SAMPLING_DEFAULTS_H_

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "common/gguf/gguf_file.h"

namespace kvist::worker {

// Unset: the file does not say. Ranges as of the request's fields of the same names.
struct SamplingDefaults {
  std::optional<float> temperature;  // general.sampling.temp, 0 .. 100
  std::optional<int32_t> top_k;      // general.sampling.top_k, 0 (off) .. vocabulary
  std::optional<float> top_p;        // general.sampling.top_p, above 0, up to 1
  std::optional<float> min_p;        // general.sampling.min_p, 0 .. 1

  friend bool operator==(const SamplingDefaults&, const SamplingDefaults&) = default;
};

// INVALID_ARGUMENT naming the key for a value of another type or out of range.
absl::StatusOr<SamplingDefaults> ReadSamplingDefaults(const gguf::File& file, int64_t vocab);

}  // namespace kvist::worker

#endif  // KVIST_WORKER_MODEL_SAMPLING_DEFAULTS_H_
