#include "services/cli/model_flags.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "worker/engine/draft_policy.h"
#include "worker/kv/layout.h"

namespace kvist::services {
namespace {

struct KnownModel {
  const char* name;
  const char* file;
};
// As deploy/local/model.sh stores them.
constexpr KnownModel kKnownModels[] = {{"smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"},
                                       {"gemma3", "gemma-3-270m-q4_k_m.gguf"}};

std::filesystem::path ModelFolder() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache != '\0') return std::filesystem::path(cache) / "kvist" / "models";
  const char* home = std::getenv("HOME");
  return std::filesystem::path(home == nullptr ? "." : home) / ".cache" / "kvist" / "models";
}

// Prints how far loading has come, when it has come a tenth further.
class LoadProgress {
 public:
  LoadProgress() : in_place_(isatty(STDERR_FILENO) != 0) {}
  void operator()(int64_t done_bytes, int64_t all_bytes) {
    if (all_bytes <= 0) return;
    const int64_t tenth = 10 * done_bytes / all_bytes;
    if (tenth == last_tenth_) return;
    last_tenth_ = tenth;
    const char* end = in_place_ && tenth < 10 ? "" : "\n";
    std::fprintf(stderr, "%sloading the model: %3d %%%s", in_place_ ? "\r" : "",
                 static_cast<int>(10 * tenth), end);
    std::fflush(stderr);
  }

 private:
  bool in_place_;
  int64_t last_tenth_ = -1;
};

}  // namespace

CLI::Option* AddModelFlag(CLI::App* command, std::string* model) {
  return command
      ->add_option("--model", *model,
                   "a GGUF file, or smollm2 or gemma3 (from the model folder under XDG_CACHE_HOME)")
      ->envname("KVIST_MODEL")
      ->required();
}

void AddComputeFlags(CLI::App* command, ModelFlags* flags) {
  command->add_option("--threads", flags->threads, "threads to compute with; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->envname("KVIST_THREADS")
      ->capture_default_str();
  command->add_option("--kernels", flags->kernels, "auto, scalar, avx2, avx512vnni")
      ->envname("KVIST_KERNELS")
      ->capture_default_str();
  command
      ->add_option("--weights", flags->weights,
                   "native: as stored, 8-bit activations; float32: all in float, slow, exact")
      ->check(CLI::IsMember({"native", "float32"}))
      ->capture_default_str();
}

void AddCacheFlags(CLI::App* command, ModelFlags* flags) {
  command
      ->add_option("--kv-formats", flags->kv_formats,
                   "served formats of keys and values, the first is the default: f32, f16, bf16; "
                   "q8 (half the memory of f16); q4 (a third)")
      ->delimiter(',')
      ->envname("KVIST_KV_FORMATS")
      ->capture_default_str();
  command
      ->add_option("--kv-memory", flags->kv_memory_bytes,
                   "memory of the KV cache, as 512MB or 2GB; 0: a quarter of what is free")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->envname("KVIST_KV_MEMORY");
  command
      ->add_option("--context", flags->context_tokens,
                   "tokens of context; 0: the model's, up to 8192")
      ->check(CLI::NonNegativeNumber)
      ->envname("KVIST_CONTEXT")
      ->capture_default_str();
  command
      ->add_option("--block-tokens", flags->block_tokens, "tokens per KV block: 16, 32, 64 or 128")
      ->check(CLI::IsMember({16, 32, 64, 128}))
      ->capture_default_str();
  command->add_option("--max-batch-tokens", flags->max_batch_tokens, "tokens of one step at most")
      ->check(CLI::Range(int64_t{1}, int64_t{65536}))
      ->capture_default_str();
}

void AddOffloadFlags(CLI::App* command, OffloadFlags* flags) {
  command
      ->add_option("--offload-dir", flags->directory,
                   "folder for KV blocks of idle sessions, of this server alone; none: no offload")
      ->envname("KVIST_OFFLOAD_DIR");
  command
      ->add_option("--offload-bytes", flags->bytes,
                   "room that it takes there, as 4GB, for each worker")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->envname("KVIST_OFFLOAD_BYTES")
      ->capture_default_str();
}

void AddEngineFlags(CLI::App* command, ModelFlags* flags) {
  command
      ->add_option("--max-step-ms", flags->max_step_ms,
                   "milliseconds, about, that the next token of an answer waits for prompts of "
                   "others at most; 0: for a whole step of --max-batch-tokens")
      ->check(CLI::Range(int64_t{0}, int64_t{60'000}))
      ->envname("KVIST_MAX_STEP_MS")
      ->capture_default_str();
  command
      ->add_option("--speculative-tokens", flags->speculative_tokens,
                   "tokens of one sequence guessed ahead in a step at most, where that is faster; "
                   "0: none; up to 8")
      ->check(CLI::Range(int64_t{0}, worker::kMaxSpeculativeTokens))
      ->envname("KVIST_SPECULATIVE_TOKENS")
      ->capture_default_str();
}

absl::StatusOr<std::string> ResolveModel(const std::string& model) {
  if (model.empty()) return InvalidField("--model", "must name a GGUF file");
  for (const KnownModel& known : kKnownModels) {
    if (model != known.name) continue;
    const std::filesystem::path path = ModelFolder() / known.file;
    std::error_code error;
    if (std::filesystem::exists(path, error)) return path.string();
    return absl::NotFoundError(absl::StrCat("--model ", model, ": there is no ", path.string(),
                                            "; ./deploy/local/quickstart.sh downloads it"));
  }
  return model;
}

absl::StatusOr<std::unique_ptr<const gguf::File>> OpenModel(const std::string& model) {
  KVIST_ASSIGN_OR_RETURN(const std::string path, ResolveModel(model));
  auto file = gguf::File::Open(path);
  if (file.ok()) return file;
  return absl::Status(file.status().code(),
                      absl::StrCat("--model ", path, ": ", file.status().message()));
}

absl::StatusOr<worker::CpuBackendOptions> BackendOptions(const ModelFlags& flags) {
  worker::CpuBackendOptions options;
  options.threads = flags.threads;
  options.kernels = flags.kernels;
  options.weights = flags.weights;
  options.context_tokens = flags.context_tokens;
  options.block_tokens = flags.block_tokens;
  options.kv_bytes = static_cast<int64_t>(flags.kv_memory_bytes);
  options.max_batch_tokens = flags.max_batch_tokens;
  options.kv_formats.clear();
  for (const std::string& name : flags.kv_formats) {
    const auto format = worker::KvFormatFromName(name);
    if (!format.ok()) return InvalidField("--kv-formats", std::string(format.status().message()));
    options.kv_formats.push_back(*format);
  }
  if (options.kv_formats.empty()) return InvalidField("--kv-formats", "must name at least one");
  return options;
}

worker::EngineOptions EngineOptionsOf(const ModelFlags& flags, int32_t max_sequences) {
  return {.max_running_sequences = max_sequences,
          .max_step_tokens = flags.max_batch_tokens,
          .max_step_seconds = static_cast<double>(flags.max_step_ms) / 1e3,
          .speculative_tokens = flags.speculative_tokens};
}

int ComputeThreads(const ModelFlags& flags) {
  return flags.threads != 0 ? flags.threads : worker::UsableCores();
}

absl::StatusOr<std::unique_ptr<worker::Backend>> LoadBackend(const gguf::File& file,
                                                             worker::CpuBackendOptions options) {
  options.progress = LoadProgress();
  auto backend = worker::CreateCpuBackend(file, options);
  if (!backend.ok()) return backend.status();
  std::fprintf(stderr, "%s on %s\n", (*backend)->model().name.c_str(),
               (*backend)->description().c_str());
  return backend;
}

absl::StatusOr<std::unique_ptr<const text::Tokenizer>> LoadTokenizer(const gguf::File& file) {
  KVIST_ASSIGN_OR_RETURN(text::Vocabulary vocabulary, text::ReadVocabulary(file));
  return text::Tokenizer::Create(std::move(vocabulary));
}

std::vector<int32_t> PromptIds(const text::Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> ids = tokenizer.Encode(text, text::ControlTokens::kPlain);
  const text::Vocabulary& vocabulary = tokenizer.vocabulary();
  if (vocabulary.add_bos && vocabulary.bos_id.has_value()) {
    ids.insert(ids.begin(), *vocabulary.bos_id);
  }
  return ids;
}

}  // namespace kvist::services
