#include "services/cli/doctor.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/base/int_math.h"
#include "common/base/status.h"
#include "services/cli/command.h"
#include "worker/backend/kv_pools.h"
#include "worker/model/registry.h"
#include "worker/model/weights.h"

namespace kvist::services {
namespace {

// A machine that does less than this beside us is idle: this process has just started.
constexpr double kIdleLoadCores = 0.5;

// Blocks of a group that a session of `tokens` holds.
int64_t BlocksOfSession(const worker::LayerGroup& group, int64_t tokens, int32_t block_tokens) {
  const int64_t all = CeilDiv<int64_t>(tokens, block_tokens);
  if (group.window == 0) return all;
  return std::min(all, CeilDiv<int64_t>(group.window, block_tokens) + 1);
}

// With one format.
FormatFit FitFormat(const std::vector<worker::LayerGroup>& groups,
                    const worker::KvPoolsOptions& options) {
  const worker::KvFormat format = options.formats.front();
  FormatFit fit{.format = std::string(worker::KvFormatName(format)),
                .kv_memory_bytes = options.kv_bytes};
  for (const worker::LayerGroup& group : groups) {
    const int64_t bytes = worker::KvLayout(group, format, options.block_tokens).BytesPerToken();
    fit.bytes_per_token += bytes;
    if (group.window == 0) fit.bytes_beyond_window += bytes;
  }
  const auto pools = worker::PlanKvPools(groups, options);
  if (!pools.ok()) return fit;
  fit.tokens = fit.sessions = std::numeric_limits<int64_t>::max();
  for (const worker::PoolSpec& pool : *pools) {
    const worker::LayerGroup& group = groups[static_cast<size_t>(pool.group)];
    const int64_t of_session = BlocksOfSession(group, kDoctorSessionTokens, options.block_tokens);
    fit.sessions = std::min(fit.sessions, pool.num_blocks / of_session);
    // A windowed group holds the end of every sequence and limits none.
    if (group.window == 0) {
      fit.tokens = std::min<int64_t>(fit.tokens, int64_t{pool.num_blocks} * pool.block_tokens);
    }
  }
  return fit;
}

}  // namespace

absl::StatusOr<ModelFit> FitModel(const gguf::File& file, const worker::CpuBackendOptions& options,
                                  int64_t available_bytes) {
  KVIST_ASSIGN_OR_RETURN(const worker::ModelConfig config, worker::ReadModelConfig(file));
  const auto mode =
      options.weights == "float32" ? worker::WeightMode::kFloat32 : worker::WeightMode::kNative;
  KVIST_ASSIGN_OR_RETURN(const worker::WeightSizes sizes, worker::PlanWeights(file, config, mode));
  if (options.context_tokens > config.context_tokens) {
    return InvalidField("context_tokens", absl::StrCat("is ", options.context_tokens,
                                                       "; the model's is ", config.context_tokens));
  }
  worker::KvPoolsOptions pools = worker::KvPoolsOptionsOf(options, config.context_tokens);
  ModelFit fit{.name = config.architecture,
               .architecture = config.architecture,
               .parameters = sizes.parameters,
               .model_context_tokens = config.context_tokens,
               .context_tokens = pools.context_tokens,
               .weight_bytes = sizes.arena_bytes,
               .step_bytes = sizes.step_bytes};
  if (file.FindValue("general.name") != nullptr) {
    KVIST_ASSIGN_OR_RETURN(fit.name, file.GetString("general.name"));
  }
  const std::vector<worker::LayerGroup> groups = worker::LayerGroupsOf(config);
  KVIST_RETURN_IF_ERROR(worker::CheckKvPools(groups, pools));
  const int64_t left_bytes = std::max<int64_t>(0, available_bytes - fit.weight_bytes);
  const auto kv_bytes = [&] {
    return options.kv_bytes != 0 ? options.kv_bytes
                                 : worker::DefaultKvBytes(groups, pools, left_bytes);
  };
  fit.kv_memory_bytes = kv_bytes();
  for (const worker::KvFormat format : worker::KnownKvFormats()) {
    pools.formats = {format};
    if (!worker::CheckKvPools(groups, pools).ok()) continue;  // heads that it cannot hold
    pools.kv_bytes = kv_bytes();
    fit.formats.push_back(FitFormat(groups, pools));
  }
  return fit;
}

std::string Diagnosis::KernelsReason() const {
  const std::string known = absl::StrJoin(known_kernels, ", ");
  return kernels_asked_for ? absl::StrCat("asked for; this CPU runs ", known)
                           : absl::StrCat("the best that this CPU runs, of ", known);
}

double Diagnosis::DecodeLimit() const {
  if (!model.has_value() || model->step_bytes == 0) return 0;
  return limits.memory_bandwidth_bytes_per_second / static_cast<double>(model->step_bytes);
}

std::vector<std::string> WarningsOf(const Diagnosis& diagnosis) {
  std::vector<std::string> warnings;
  const MachineFacts& machine = diagnosis.machine;
  if (machine.huge_pages == "never") {
    warnings.push_back(
        "huge pages are off, which costs a few per cent of decode: as root, echo madvise > "
        "/sys/kernel/mm/transparent_hugepage/enabled");
  }
  if (machine.usable_cores == 1) {
    warnings.push_back(
        "this process may use one core only, and a server's other threads share it: give it more "
        "cores (taskset, the container's limits)");
  } else if (machine.usable_cores < machine.online_cores) {
    warnings.push_back(absl::StrCat("this process may use ", machine.usable_cores, " of ",
                                    machine.online_cores,
                                    " cores: widen its affinity if that is not meant (taskset)"));
  }
  if (diagnosis.threads > machine.usable_cores) {
    warnings.push_back(absl::StrCat(diagnosis.threads, " threads on ", machine.usable_cores,
                                    " cores wait for each other: use --threads ",
                                    machine.usable_cores));
  }
  if (machine.quota_cores > 0 && machine.quota_cores < diagnosis.threads) {
    warnings.push_back(absl::StrFormat(
        "the control group grants %.1f cores and stops the process when they are used up: use "
        "--threads %d, or raise its CPU limit",
        machine.quota_cores, std::max(1, static_cast<int>(machine.quota_cores))));
  }
  if (machine.load_cores > kIdleLoadCores) {
    warnings.push_back(absl::StrFormat(
        "%.1f cores were busy over the last minute: what is measured here is less than the machine "
        "can do; stop the others, or leave them cores by --threads",
        machine.load_cores));
  }
  if (diagnosis.kernels == "scalar") {
    warnings.push_back(diagnosis.known_kernels.size() > 1
                           ? "the scalar kernels are the slow reference: use --kernels auto"
                           : "this CPU has no AVX2, without which only the slow reference runs");
  }
  if (!diagnosis.model.has_value()) return warnings;
  const ModelFit& model = *diagnosis.model;
  if (model.weight_bytes + model.kv_memory_bytes > diagnosis.available_bytes) {
    warnings.push_back(absl::StrCat(
        HumanBytes(model.weight_bytes), " of weights and ", HumanBytes(model.kv_memory_bytes),
        " of KV exceed the ", HumanBytes(diagnosis.available_bytes),
        " that are available: use --kv-memory, a smaller model or a machine with more memory"));
  }
  for (const FormatFit& format : model.formats) {
    if (format.tokens > 0) continue;
    warnings.push_back(absl::StrCat("in ", format.format, " the KV memory of ",
                                    HumanBytes(format.kv_memory_bytes),
                                    " does not hold one sequence of ", model.context_tokens,
                                    " tokens: raise --kv-memory or lower --context"));
  }
  return warnings;
}

}  // namespace kvist::services
