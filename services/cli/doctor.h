// What this machine can do for a model, and what keeps it from doing more.
#ifndef KVIST_SERVICES_CLI_DOCTOR_H_
#define KVIST_SERVICES_CLI_DOCTOR_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/gguf/gguf_file.h"
#include "services/cli/machine_facts.h"
#include "services/cli/machine_limits.h"
#include "worker/backend/cpu_backend.h"

namespace kvist::services {

// What one KV format takes and what fits into the KV memory if it is served alone.
struct FormatFit {
  std::string format;
  int64_t kv_memory_bytes = 0;      // that its pools would get
  int64_t bytes_per_token = 0;      // of all layers
  int64_t bytes_beyond_window = 0;  // of each token once the windowed layers let go of one: the
                                    // others; as bytes_per_token where no layer has a window
  int64_t tokens = 0;               // 0: not even one sequence of the whole context fits
  int64_t sessions = 0;             // of kDoctorSessionTokens each
};
inline constexpr int64_t kDoctorSessionTokens = 1024;

struct ModelFit {
  std::string name;
  std::string architecture;
  int64_t parameters = 0;
  int64_t model_context_tokens = 0;  // the model's own limit
  int64_t context_tokens = 0;        // that would be served
  int64_t weight_bytes = 0;          // in memory
  int64_t step_bytes = 0;            // of them, read by each decode step
  int64_t kv_memory_bytes = 0;       // that the pools would get
  std::vector<FormatFit> formats;
};

// Says what a worker with `options` would make of the model, and loads nothing. `available_bytes`:
// of memory, weights included. INVALID_ARGUMENT as CreateCpuBackend.
absl::StatusOr<ModelFit> FitModel(const gguf::File& file, const worker::CpuBackendOptions& options,
                                  int64_t available_bytes);

struct Diagnosis {
  MachineFacts machine;
  int64_t available_bytes = 0;  // of memory
  int threads = 0;
  std::string kernels;
  std::vector<std::string> known_kernels;  // that run here, best last
  bool kernels_asked_for = false;          // by a flag
  MachineLimits limits;
  std::optional<ModelFit> model;

  // Why these kernels, for people.
  std::string KernelsReason() const;
  // Tokens per second of one sequence if a step did nothing but read the weights; 0 without a
  // model.
  double DecodeLimit() const;
};

// What is wrong or costs speed, each with what to do about it. Empty: all is well.
std::vector<std::string> WarningsOf(const Diagnosis& diagnosis);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CLI_DOCTOR_H_
