// Flags of generate and chat: how the next token is chosen and when the text ends.
#ifndef KVIST_SERVICES_CLI_GENERATION_FLAGS_H_
#define KVIST_SERVICES_CLI_GENERATION_FLAGS_H_

#include <CLI/App.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/kvist/v1/inference.pb.h"
#include "services/client/client.h"
#include "services/runtime/cache_params.h"

namespace kvist::services {

struct GenerationFlags {
  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::optional<uint64_t> seed;
  std::optional<int32_t> logprobs;
  std::optional<int64_t> max_new_tokens;
  std::optional<int64_t> min_new_tokens;
  std::vector<int32_t> stop_ids;
  std::vector<std::string> stop_strings;
  bool ignore_eos = false;
  int32_t priority = 0;
  CacheWish cache;
};

void AddGenerationFlags(CLI::App* command, GenerationFlags* flags);
// --cache and what refines it.
void AddCacheFlags(CLI::App* command, CacheWish* cache);
// All but the cache. Only what was given; the server fills in the rest and checks everything.
void FillRequest(const GenerationFlags& flags, v1::GenerateRequest* request);
// The cache asked for. The server is asked for the context of `model` (empty: of every one served)
// where a preset has a window, which is no wider. Errors as CacheParamsOf and Client::ListModels.
absl::StatusOr<v1::CacheParams> AskedCache(const CacheWish& wish, const std::string& model,
                                           Client& client);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CLI_GENERATION_FLAGS_H_
