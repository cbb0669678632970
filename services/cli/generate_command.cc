// kvist generate: one text from a prompt.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "common/base/status.h"
#include "services/cli/commands.h"
#include "services/cli/generation_flags.h"
#include "services/cli/interrupt.h"
#include "services/cli/read_input.h"

namespace kvist::services {
namespace {

struct GenerateFlags {
  std::string prompt;
  bool chat = false;
  std::string system;
  std::string endpoint;
  std::string session;
  std::string model;
  int64_t timeout_ms = 0;
  std::optional<int32_t> samples;
  std::optional<int32_t> sample_index;
  std::string output;
  GenerationFlags generation;
};

absl::StatusOr<v1::GenerateRequest> MakeRequest(const GenerateFlags& flags, std::string prompt,
                                                Client& client) {
  v1::GenerateRequest request;
  request.set_model(flags.model);
  request.set_session_id(flags.session);
  FillRequest(flags.generation, &request);
  KVIST_ASSIGN_OR_RETURN(*request.mutable_cache(),
                         AskedCache(flags.generation.cache, flags.model, client));
  if (flags.samples.has_value()) request.set_samples(*flags.samples);
  if (flags.sample_index.has_value()) {
    request.mutable_sampling()->set_sample_index(*flags.sample_index);
  }
  if (!flags.chat) {
    request.mutable_text()->set_text(std::move(prompt));
    return request;
  }
  if (!flags.system.empty()) {
    v1::ChatMessage& system = *request.mutable_chat()->add_messages();
    system.set_role(v1::ChatMessage::SYSTEM);
    system.set_content(flags.system);
  }
  v1::ChatMessage& user = *request.mutable_chat()->add_messages();
  user.set_role(v1::ChatMessage::USER);
  user.set_content(std::move(prompt));
  return request;
}

nlohmann::ordered_json LogprobsJson(const std::vector<v1::Token>& tokens) {
  auto rows = nlohmann::ordered_json::array();
  for (const v1::Token& token : tokens) {
    auto top = nlohmann::ordered_json::array();
    for (const v1::TokenLogprob& row : token.top_logprobs()) {
      top.push_back({{"id", row.id()}, {"logprob", row.logprob()}});
    }
    rows.push_back({{"id", token.id()}, {"logprob", token.logprob()}, {"top", std::move(top)}});
  }
  return rows;
}

nlohmann::ordered_json IdsJson(const std::vector<v1::Token>& tokens) {
  auto ids = nlohmann::ordered_json::array();
  for (const v1::Token& token : tokens) ids.push_back(token.id());
  return ids;
}

// Of all samples; of the only one where there are not several.
nlohmann::ordered_json SamplesJson(const Generated& generated, bool logprobs) {
  std::vector<GeneratedSample> samples = generated.samples;
  if (samples.empty()) {
    samples.push_back({.text = generated.text, .tokens = generated.tokens});
    samples[0].finished.set_reason(generated.finished.reason());
    samples[0].finished.set_cached_tokens(generated.finished.usage().cached_tokens());
  }
  auto rows = nlohmann::ordered_json::array();
  for (const GeneratedSample& sample : samples) {
    rows.push_back({{"text", sample.text},
                    {"token_ids", IdsJson(sample.tokens)},
                    {"finish_reason", FinishReasonText(sample.finished.reason())},
                    {"cached_tokens", sample.finished.cached_tokens()}});
    if (logprobs) rows.back()["logprobs"] = LogprobsJson(sample.tokens);
  }
  return rows;
}

// A stream that was cut on this side brought no last message; its end is known all the same.
void CompleteEarlyEnd(const absl::Status& status, bool cancelled, Generated* generated) {
  v1::Finished& finished = generated->finished;
  const v1::FinishReason broken = absl::IsDeadlineExceeded(status) ? v1::DEADLINE : v1::ERROR;
  const v1::FinishReason cut = cancelled ? v1::CANCELLED : broken;
  for (GeneratedSample& sample : generated->samples) {
    if (sample.finished.reason() != v1::FINISH_REASON_UNSPECIFIED) continue;
    sample.finished.set_reason(cut);
  }
  if (finished.reason() != v1::FINISH_REASON_UNSPECIFIED) return;
  finished.set_reason(cut);
  finished.mutable_usage()->set_prompt_tokens(generated->started.prompt_tokens());
  finished.mutable_usage()->set_generated_tokens(static_cast<int64_t>(generated->tokens.size()));
}

// The members of ARCHITECTURE.md, section 9, and what else is known.
void PrintResult(const Generated& generated, const GenerateFlags& flags) {
  const v1::Finished& finished = generated.finished;
  const bool logprobs = flags.generation.logprobs.has_value();
  nlohmann::ordered_json json = {
      {"text", generated.text},
      {"token_ids", IdsJson(generated.tokens)},
      {"finish_reason", FinishReasonText(finished.reason())},
      {"prompt_tokens", finished.usage().prompt_tokens()},
      {"cached_tokens", finished.usage().cached_tokens()},
      {"timings",
       {{"time_to_first_token_ms", finished.timings().time_to_first_token_ms()},
        {"prefill_tokens_per_second", finished.timings().prefill_tokens_per_second()},
        {"decode_tokens_per_second", finished.timings().decode_tokens_per_second()},
        {"queue_ms", finished.timings().queue_ms()},
        {"total_ms", finished.timings().total_ms()}}},
      {"worker", generated.started.worker_id()},
      {"session", generated.started.session_id()},
      {"seed", generated.started.seed()},
      {"request_id", generated.started.request_id()},
      {"attempts", finished.attempts()}};
  if (!generated.started.turn_id().empty()) json["turn"] = generated.started.turn_id();
  if (finished.has_session_version()) json["session_version"] = finished.session_version();
  if (finished.has_turn_saved()) json["turn_saved"] = finished.turn_saved();
  if (logprobs) json["logprobs"] = LogprobsJson(generated.tokens);
  if (flags.samples.has_value()) json["samples"] = SamplesJson(generated, logprobs);
  PrintJson(json);
}

void PrintStatistics(const Generated& generated) {
  const v1::Usage& usage = generated.finished.usage();
  const v1::Timings& timings = generated.finished.timings();
  std::fprintf(
      stderr,
      "%lld prompt tokens (%lld cached), %lld new; first after %.0f ms; prompt %.1f tok/s, "
      "answer %.1f tok/s; %s\n",
      static_cast<long long>(usage.prompt_tokens()), static_cast<long long>(usage.cached_tokens()),
      static_cast<long long>(usage.generated_tokens()), timings.time_to_first_token_ms(),
      timings.prefill_tokens_per_second(), timings.decode_tokens_per_second(),
      std::string(FinishReasonText(generated.finished.reason())).c_str());
}

int RunGenerateCommand(const GenerateFlags& flags) {
  std::string prompt = flags.prompt;
  if (prompt == "-") {  // nobody watches for Ctrl-C yet, so that it ends the wait for input
    auto input = ReadInput(prompt);
    if (!input.ok()) return ReportLocalError(input.status());
    prompt = *std::move(input);
  }
  Cancellation cancellation;
  InterruptWatch interrupt([&](int) { cancellation.Cancel(); });
  int exit_code = kExitOk;
  const auto client = ConnectOrReport(flags.endpoint, &exit_code);
  if (client == nullptr) return cancellation.cancelled() ? kExitInterrupted : exit_code;
  const auto request = MakeRequest(flags, std::move(prompt), *client);
  if (!request.ok()) return ReportError(request.status());
  const bool json = flags.output == "json";
  std::FILE* text_out = json ? stderr : stdout;
  GenerateOptions options;
  options.timeout = std::chrono::milliseconds(flags.timeout_ms);
  options.cancellation = &cancellation;
  // The first answer as it comes, the others after it: mixed, nobody could read them.
  options.on_delta = [&](const v1::Delta& delta) {
    if (delta.sample() != 0) return;
    std::fwrite(delta.text().data(), 1, delta.text().size(), text_out);
    std::fflush(text_out);
  };
  Generated generated;
  const absl::Status status = client->Generate(*request, options, &generated);
  if (!generated.text.empty()) std::fprintf(text_out, "\n");
  for (size_t i = 1; i < generated.samples.size(); ++i) {
    std::fprintf(text_out, "--- sample %zu ---\n%s\n", i, generated.samples[i].text.c_str());
  }
  std::fflush(text_out);
  if (!status.ok()) {
    const bool cancelled = cancellation.cancelled();
    CompleteEarlyEnd(status, cancelled, &generated);
    // Not for a refusal: nothing was generated, and its code says it all.
    if (json && (cancelled || absl::IsDeadlineExceeded(status) || !generated.tokens.empty())) {
      PrintResult(generated, flags);
    }
    return cancelled ? kExitInterrupted : ReportError(status);
  }
  PrintStatistics(generated);
  if (json) PrintResult(generated, flags);
  if (generated.finished.has_turn_saved() && !generated.finished.turn_saved()) {
    std::fprintf(stderr, "kvist: warning: the session did not keep this turn\n");
  }
  return kExitOk;
}

}  // namespace

void AddGenerate(CLI::App& app, Run* run) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command =
      AddCommand(app, "generate", "Continue a text, or answer it with --chat.",
                 "  kvist generate \"The red cat was\" --max-new-tokens 50\n"
                 "  kvist generate \"Write a short story about a red cat.\" --chat --seed 1\n"
                 "  kvist generate \"Count:\" --output json --logprobs 3 --stop \"10\"\n"
                 "  kvist generate \"Once upon a time\" --samples 4 --temperature 0.8 --seed 7\n"
                 "  kvist generate \"Once\" --cache sliding_window --window 512 --sinks 4\n"
                 "  echo \"Once upon a time\" | kvist generate -\n",
                 run, flags, &RunGenerateCommand);
  command->add_option("prompt", flags->prompt, "the text; - reads standard input")->required();
  command->add_flag("--chat", flags->chat, "apply the model's chat template");
  command->add_option("--system", flags->system,
                      "a system message before the prompt (with --chat)");
  AddEndpointFlag(command, &flags->endpoint);
  command->add_option("--session", flags->session,
                      "a session (kvist sessions create) that remembers the text");
  command->add_option("--model-name", flags->model, "where the server has several");
  command->add_option("--timeout-ms", flags->timeout_ms, "give up after; 0: the server's limit")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--samples", flags->samples,
                      "answers to the one prompt, 1 to 16; the prompt is computed once");
  command->add_option("--sample-index", flags->sample_index,
                      "of the first answer: sample k of seed S is index k of seed S alone");
  AddGenerationFlags(command, &flags->generation);
  AddOutputFlag(command, &flags->output);
}

}  // namespace kvist::services
