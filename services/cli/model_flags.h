// Flags that name a model and how it runs on this machine, and loading it by them.
#ifndef KVIST_SERVICES_CLI_MODEL_FLAGS_H_
#define KVIST_SERVICES_CLI_MODEL_FLAGS_H_

#include <CLI/App.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/gguf/gguf_file.h"
#include "common/text/tokenizer.h"
#include "worker/backend/backend.h"
#include "worker/backend/cpu_backend.h"
#include "worker/engine/engine.h"

namespace kvist::services {

// A folder for blocks of idle sessions; empty: none.
struct OffloadFlags {
  std::string directory;
  uint64_t bytes = uint64_t{4} << 30;
};

struct ModelFlags {
  std::string model;
  int threads = 0;
  std::string kernels = "auto";
  std::string weights = "native";
  std::vector<std::string> kv_formats = {"f16"};
  uint64_t kv_memory_bytes = 0;
  int64_t context_tokens = 0;
  int32_t block_tokens = 16;
  int64_t max_batch_tokens = 512;
  int64_t max_step_ms = 250;  // a reader does not notice more of a pause
  OffloadFlags offload;
  // Four rows and eight fill the kernels' tiles: that many drafts and the newest token.
  int32_t speculative_tokens = 7;
};

// --model, KVIST_MODEL; required unless the caller changes that.
CLI::Option* AddModelFlag(CLI::App* command, std::string* model);
// --threads, --kernels, --weights.
void AddComputeFlags(CLI::App* command, ModelFlags* flags);
// --kv-formats, --kv-memory, --context, --block-tokens, --max-batch-tokens.
void AddCacheFlags(CLI::App* command, ModelFlags* flags);
// --max-step-ms, --speculative-tokens.
void AddEngineFlags(CLI::App* command, ModelFlags* flags);

// --offload-dir, --offload-bytes: of a server.
void AddOffloadFlags(CLI::App* command, OffloadFlags* flags);

// "smollm2" and "gemma3" name files in ${XDG_CACHE_HOME:-~/.cache}/kvist/models, anything else is a
// path. NOT_FOUND saying how to get it; INVALID_ARGUMENT for none.
absl::StatusOr<std::string> ResolveModel(const std::string& model);
absl::StatusOr<std::unique_ptr<const gguf::File>> OpenModel(const std::string& model);
// INVALID_ARGUMENT naming the flag.
absl::StatusOr<worker::CpuBackendOptions> BackendOptions(const ModelFlags& flags);

// What the flags say of a server's engine, but for its disk.
worker::EngineOptions EngineOptionsOf(const ModelFlags& flags, int32_t max_sequences);

// What --threads comes to: itself, or one per core that this process may use.
int ComputeThreads(const ModelFlags& flags);

// Loads with progress on stderr, if that is a terminal in place, else a line per tenth.
absl::StatusOr<std::unique_ptr<worker::Backend>> LoadBackend(const gguf::File& file,
                                                             worker::CpuBackendOptions options);
absl::StatusOr<std::unique_ptr<const text::Tokenizer>> LoadTokenizer(const gguf::File& file);
// The ids of a plain text, BOS first where the model asks for it.
std::vector<int32_t> PromptIds(const text::Tokenizer& tokenizer, std::string_view text);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CLI_MODEL_FLAGS_H_
