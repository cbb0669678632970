#include "worker/backend/cpu_backend.h"

#include <sched.h>

#include <algorithm>
#include <cfenv>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cache_manager/limits.h"
#include "common/base/check.h"
#include "common/base/status.h"
#include "common/text/utf8.h"
#include "worker/backend/batch_check.h"
#include "worker/backend/kv_pools.h"
#include "worker/backend/memory_available.h"
#include "worker/backend/thread_team.h"
#include "worker/backend/transformer.h"
#include "worker/model/registry.h"
#include "worker/model/rope_table.h"
#include "worker/model/weights.h"

namespace kvist::worker {
namespace {

constexpr std::string_view kNameKey = "general.name";

// Raised whenever the bits of logits or of KV pages change for the same file.
constexpr int kRecipeVersion = 2;
constexpr int64_t kMaxBatchTokens = 65536;

// The caller's floating-point environment, restored at the end: flushing denormals is for the
// kernels, not for whoever calls.
class FloatEnvironmentScope {
 public:
  FloatEnvironmentScope() {
    std::fegetenv(&saved_);
    SetFloatEnvironment();
  }
  ~FloatEnvironmentScope() { std::fesetenv(&saved_); }
  FloatEnvironmentScope(const FloatEnvironmentScope&) = delete;
  FloatEnvironmentScope& operator=(const FloatEnvironmentScope&) = delete;

 private:
  std::fenv_t saved_;
};

absl::Status CheckRange(std::string_view field, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("must be ", least, " to ", most, ", is ", value));
}

class CpuBackend final : public Backend {
 public:
  // Everything of Create's steps ends here; order of destruction is the reverse: the team goes
  // first.
  ModelConfig config;
  ModelFacts facts;
  WeightMode weight_mode = WeightMode::kNative;
  BatchLimits limits;
  const KernelTable* kernels = nullptr;
  std::unique_ptr<Weights> weights;
  RopeTable rope;
  RopeTable windowed_rope;
  KvPools kv_pools;
  BlockWriters writers;
  std::unique_ptr<ThreadTeam> team;
  std::unique_ptr<Transformer> transformer;

  const ModelFacts& model() const override { return facts; }
  const std::vector<PoolSpec>& pools() const override { return kv_pools.specs(); }
  int64_t max_batch_tokens() const override { return limits.max_batch_tokens; }
  int64_t max_logit_rows() const override { return limits.max_logit_rows; }

  // All kernel tables give the same bits, so the table is no part of it; nor is the block size
  // (backend.h).
  std::string numerics_id() const override {
    return absl::StrCat("cpu-", kRecipeVersion, "/",
                        weight_mode == WeightMode::kNative ? "native" : "float32", "/page",
                        kPageTokens);
  }

  std::string description() const override {
    return absl::StrCat("cpu/", ToAbsl(kernels->name), ", ", team->size(),
                        team->size() == 1 ? " thread" : " threads",
                        weights->arena.huge_pages() ? ", huge pages" : "");
  }

  std::vector<MemoryPart> memory() const override {
    const TransformerMemory work = transformer->memory();
    return {
        // Packed matrices, norms, biases; rows of the embedding where it is not the output matrix.
        {"weights", weights->arena.taken_bytes()},
        // Context x pairs cosines and sines, for layers that see everything and for windowed ones.
        {"rope", rope.taken_bytes() + windowed_rope.taken_bytes()},
        // Blocks of every pool: all that sequences and the prefix cache can ever hold.
        {"kv", kv_pools.taken_bytes()},
        // Rows of a pass: residual stream, q, k, v, feed-forward, their quantised forms.
        {"activations", work.activations_bytes},
        // Scores and partial outputs of one piece of attention, for each thread.
        {"attention", work.attention_bytes},
        // Rows of logits x vocabulary, and the normed rows that they come from.
        {"logits", work.logits_bytes},
    };
  }

  absl::StatusOr<Logits> Run(const Batch& batch) override {
    KVIST_RETURN_IF_ERROR(CheckBatch(batch, limits, facts.groups, kv_pools.specs(), writers));
    const FloatEnvironmentScope environment;
    return transformer->Run(batch);
  }

  void CopyBlock(int32_t pool, int32_t from, int32_t to) override {
    const std::span<const std::byte> source = kv_pools.Block(pool, from);
    std::memmove(kv_pools.Block(pool, to).data(), source.data(), source.size());
  }
  void ReadBlock(int32_t pool, int32_t block, std::span<std::byte> out) const override {
    const std::span<const std::byte> source = kv_pools.Block(pool, block);
    KVIST_CHECK(out.size() == source.size(), "block size");
    std::memcpy(out.data(), source.data(), source.size());
  }
  void WriteBlock(int32_t pool, int32_t block, std::span<const std::byte> bytes) override {
    const std::span<std::byte> target = kv_pools.Block(pool, block);
    KVIST_CHECK(bytes.size() == target.size(), "block size");
    std::memcpy(target.data(), bytes.data(), bytes.size());
  }
  void ReadTokens(int32_t pool, int32_t block, int32_t tokens,
                  std::span<std::byte> out) const override {
    ReadBlock(pool, block, out);
    kv_pools.layout(pool).ClearFrom(tokens, out);
  }
};

absl::StatusOr<WeightMode> WeightModeFromName(const std::string& name) {
  if (name == "native") return WeightMode::kNative;
  if (name == "float32") return WeightMode::kFloat32;
  return InvalidField("weights",
                      absl::StrCat("unknown mode \"", name, "\"; known: native, float32"));
}

absl::Status ReadOptions(const gguf::File& file, const CpuBackendOptions& options,
                         CpuBackend& backend) {
  KVIST_RETURN_IF_ERROR(CheckRange("threads", options.threads, 0, kMaxTeamThreads));
  KVIST_RETURN_IF_ERROR(
      CheckRange("max_batch_tokens", options.max_batch_tokens, 1, kMaxBatchTokens));
  KVIST_RETURN_IF_ERROR(CheckRange("max_logit_rows", options.max_logit_rows, 1, kMaxBatchTokens));
  KVIST_ASSIGN_OR_RETURN(backend.weight_mode, WeightModeFromName(options.weights));
  KVIST_ASSIGN_OR_RETURN(backend.kernels, SelectKernels(options.kernels));
  KVIST_ASSIGN_OR_RETURN(backend.config, ReadModelConfig(file));
  const ModelConfig& config = backend.config;
  KVIST_RETURN_IF_ERROR(
      CheckRange("context_tokens", options.context_tokens, 0, config.context_tokens));
  KVIST_ASSIGN_OR_RETURN(backend.facts.sampling_defaults, ReadSamplingDefaults(file, config.vocab));
  backend.limits = {
      .vocab = config.vocab,
      .context_tokens = KvPoolsOptionsOf(options, config.context_tokens).context_tokens,
      .max_batch_tokens = options.max_batch_tokens,
      .max_logit_rows = options.max_logit_rows};
  return absl::OkStatus();
}

absl::Status LoadModel(const gguf::File& file, const CpuBackendOptions& options,
                       CpuBackend& backend) {
  KVIST_ASSIGN_OR_RETURN(backend.team,
                         ThreadTeam::Create(options.threads != 0 ? options.threads : UsableCores(),
                                            SetFloatEnvironment));
  ThreadTeam& team = *backend.team;
  KVIST_ASSIGN_OR_RETURN(backend.weights,
                         LoadWeights(file, backend.config,
                                     [&team](int64_t count, absl::FunctionRef<void(int64_t)> body) {
                                       team.ParallelFor(count, body);
                                     },
                                     {.mode = backend.weight_mode, .progress = options.progress}));
  const ModelConfig& config = backend.config;
  const float* factors = backend.weights->rope_factors;
  KVIST_ASSIGN_OR_RETURN(backend.rope, RopeTable::Create(config.rope, backend.limits.context_tokens,
                                                         config.rope_pairs, factors));
  if (config.window > 0) {
    KVIST_ASSIGN_OR_RETURN(backend.windowed_rope,
                           RopeTable::Create(config.windowed_rope, backend.limits.context_tokens,
                                             config.rope_pairs, factors));
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelFacts> FactsOf(const gguf::File& file, const CpuBackend& backend) {
  ModelFacts facts = backend.facts;  // what ReadOptions found
  facts.architecture = backend.config.architecture;
  facts.name = std::filesystem::path(file.path()).stem().string();
  if (file.FindValue(kNameKey) != nullptr) {
    KVIST_ASSIGN_OR_RETURN(facts.name, file.GetString(kNameKey));
  }
  // Messages to managers and frontends carry nothing else.
  if (!text::IsValidUtf8(facts.name)) return InvalidField(kNameKey, "must be UTF-8");
  if (facts.name.size() > cache_manager::kMaxNameBytes) {
    return InvalidField(kNameKey, absl::StrCat("has ", facts.name.size(), " bytes; at most ",
                                               cache_manager::kMaxNameBytes, " are allowed"));
  }
  facts.fingerprint = file.Fingerprint();
  facts.vocab = backend.config.vocab;
  facts.context_tokens = backend.limits.context_tokens;
  facts.parameters = backend.weights->parameters;
  facts.weight_bytes = backend.weights->step_bytes;
  facts.groups = LayerGroupsOf(backend.config);
  return facts;
}

absl::Status TakePools(const CpuBackendOptions& options, CpuBackend& backend) {
  KvPoolsOptions plan = KvPoolsOptionsOf(options, backend.config.context_tokens);
  const std::vector<LayerGroup>& groups = backend.facts.groups;
  if (plan.kv_bytes == 0 && plan.blocks_per_pool == 0) {
    KVIST_ASSIGN_OR_RETURN(const int64_t available, MemoryAvailableBytes());
    plan.kv_bytes = DefaultKvBytes(groups, plan, available);
  }
  KVIST_ASSIGN_OR_RETURN(std::vector<PoolSpec> specs, PlanKvPools(groups, plan));
  KVIST_ASSIGN_OR_RETURN(backend.kv_pools, KvPools::Create(groups, std::move(specs)));
  backend.writers = BlockWriters(backend.kv_pools.specs());
  return absl::OkStatus();
}

}  // namespace

KvPoolsOptions KvPoolsOptionsOf(const CpuBackendOptions& options, int64_t model_context_tokens) {
  return {.formats = options.kv_formats,
          .block_tokens = options.block_tokens,
          .context_tokens = options.context_tokens != 0
                                ? options.context_tokens
                                : std::min(model_context_tokens, kDefaultContextTokens),
          .max_batch_tokens = options.max_batch_tokens,
          .kv_bytes = options.kv_bytes,
          .blocks_per_pool = options.blocks_per_pool};
}

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::clamp(CPU_COUNT(&set), 1, kMaxTeamThreads);
}

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const gguf::File& file,
                                                          const CpuBackendOptions& options) {
  auto backend = std::make_unique<CpuBackend>();
  KVIST_RETURN_IF_ERROR(ReadOptions(file, options, *backend));
  KVIST_RETURN_IF_ERROR(CheckKvPools(LayerGroupsOf(backend->config),
                                     KvPoolsOptionsOf(options, backend->config.context_tokens)));
  {
    const FloatEnvironmentScope environment;
    KVIST_RETURN_IF_ERROR(LoadModel(file, options, *backend));
  }
  KVIST_ASSIGN_OR_RETURN(backend->facts, FactsOf(file, *backend));
  KVIST_RETURN_IF_ERROR(TakePools(options, *backend));
  KVIST_ASSIGN_OR_RETURN(backend->transformer,
                         Transformer::Create({.config = &backend->config,
                                              .weights = backend->weights.get(),
                                              .kernels = backend->kernels,
                                              .team = backend->team.get(),
                                              .pools = &backend->kv_pools,
                                              .rope = &backend->rope,
                                              .windowed_rope = &backend->windowed_rope},
                                             options.max_logit_rows));
  return backend;
}

}  // namespace kvist::worker
