#include "services/cli/generation_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "common/base/status.h"

namespace kvist::services {

void AddGenerationFlags(CLI::App* command, GenerationFlags* flags) {
  command->add_option("--max-new-tokens", flags->max_new_tokens, "at most; default 256");
  command->add_option("--min-new-tokens", flags->min_new_tokens, "at least");
  command->add_option("--temperature", flags->temperature, "0: greedy, up to 100");
  command->add_option("--top-k", flags->top_k, "only the k likeliest; 0: off");
  command->add_option("--top-p", flags->top_p, "only the likeliest that make up this share");
  command->add_option("--min-p", flags->min_p, "only those this likely relative to the likeliest");
  command->add_option("--repetition-penalty", flags->repetition_penalty, "1: none");
  command->add_option("--presence-penalty", flags->presence_penalty, "-2 to 2");
  command->add_option("--frequency-penalty", flags->frequency_penalty, "-2 to 2");
  command->add_option("--seed", flags->seed, "the same seed gives the same text; none: drawn");
  command->add_option("--logprobs", flags->logprobs,
                      "alternatives per token, 0 to 20 (in the JSON)");
  command->add_option("--stop", flags->stop_strings, "a text that ends the answer; may be repeated")
      ->allow_extra_args(false);
  command
      ->add_option("--stop-id", flags->stop_ids, "a token id that ends the answer; may be repeated")
      ->allow_extra_args(false);
  command->add_flag("--ignore-eos", flags->ignore_eos,
                    "the model's own end does not end the answer");
  command->add_option("--priority", flags->priority,
                      "-100 to 100: higher ones run first where requests wait; default 0");
  AddCacheFlags(command, &flags->cache);
}

void AddCacheFlags(CLI::App* command, CacheWish* cache) {
  command
      ->add_option(
          "--cache", cache->preset,
          "paged (also dynamic); static: memory promised ahead; sliding_window; quantized: "
          "q8; offloaded: blocks go to the server's disk; none: recompute everything for every "
          "token")
      ->check(CLI::IsMember(CachePresetNames()));
  command->add_option("--window", cache->window_tokens,
                      "tokens that each one sees, itself included; 0: all");
  command->add_option("--sinks", cache->sink_tokens, "first tokens seen from beyond the window");
  command->add_option("--kv-format", cache->kv_format,
                      "f32, f16, bf16, q8 or q4, where the server has it");
  command
      ->add_option("--offload", cache->offload,
                   "where blocks go between turns: off; disk, where the server has it; host")
      ->check(CLI::IsMember({"off", "disk", "host"}));
}

void FillRequest(const GenerationFlags& flags, v1::GenerateRequest* request) {
  v1::SamplingParams& sampling = *request->mutable_sampling();
  if (flags.temperature.has_value()) sampling.set_temperature(*flags.temperature);
  if (flags.top_k.has_value()) sampling.set_top_k(*flags.top_k);
  if (flags.top_p.has_value()) sampling.set_top_p(*flags.top_p);
  if (flags.min_p.has_value()) sampling.set_min_p(*flags.min_p);
  if (flags.repetition_penalty.has_value()) {
    sampling.set_repetition_penalty(*flags.repetition_penalty);
  }
  if (flags.presence_penalty.has_value()) sampling.set_presence_penalty(*flags.presence_penalty);
  if (flags.frequency_penalty.has_value()) {
    sampling.set_frequency_penalty(*flags.frequency_penalty);
  }
  if (flags.seed.has_value()) sampling.set_seed(*flags.seed);
  if (flags.logprobs.has_value()) sampling.set_logprobs(*flags.logprobs);
  v1::StopParams& stop = *request->mutable_stop();
  if (flags.max_new_tokens.has_value()) stop.set_max_new_tokens(*flags.max_new_tokens);
  if (flags.min_new_tokens.has_value()) stop.set_min_new_tokens(*flags.min_new_tokens);
  stop.mutable_stop_ids()->Add(flags.stop_ids.begin(), flags.stop_ids.end());
  for (const std::string& text : flags.stop_strings) stop.add_stop_strings(text);
  if (flags.ignore_eos) stop.set_ignore_model_stops(true);
  request->set_priority(flags.priority);
}

absl::StatusOr<v1::CacheParams> AskedCache(const CacheWish& wish, const std::string& model,
                                           Client& client) {
  KVIST_ASSIGN_OR_RETURN(v1::CacheParams params, CacheParamsOf(wish));
  if (wish.window_tokens.has_value() || params.attention().window_tokens() == 0) return params;
  // The number is the preset's, and what a person did not say must fit.
  KVIST_ASSIGN_OR_RETURN(const v1::ListModelsResponse served, client.ListModels());
  int64_t context_tokens = cache_manager::kMaxWindowTokens;
  for (const v1::Model& candidate : served.models()) {
    if (model.empty() || model == candidate.name() || model == candidate.fingerprint()) {
      context_tokens = std::min(context_tokens, candidate.context_tokens());
    }
  }
  return CacheParamsOf(wish, context_tokens);
}

}  // namespace kvist::services
