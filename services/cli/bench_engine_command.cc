// kvist bench engine: how fast a model runs here, beside what the machine could do.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/base/status.h"
#include "services/cli/commands.h"
#include "services/cli/machine_facts.h"
#include "services/cli/machine_limits.h"
#include "services/cli/model_flags.h"
#include "services/cli/model_work.h"
#include "services/cli/sequence_runner.h"
#include "worker/kernels/kernel_table.h"
#include "worker/model/registry.h"

namespace kvist::services {
namespace {

struct BenchFlags {
  ModelFlags model;
  int64_t prompt_tokens = 512;
  int64_t new_tokens = 128;
  int batch = 1;
  int64_t depth = 0;
  int rounds = 5;
  uint64_t seed = 1;
  std::string kv_format = "f16";
  std::string output;
};

struct Spread {
  double median = 0;
  double min = 0;
  double max = 0;
};

Spread SpreadOf(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  return {.median = values[values.size() / 2], .min = values.front(), .max = values.back()};
}

nlohmann::ordered_json SpreadJson(const Spread& spread) {
  return {{"median", spread.median}, {"min", spread.min}, {"max", spread.max}};
}

struct BenchResult {
  Spread prefill;  // tokens per second
  Spread decode;   // of all sequences together
  MachineLimits limits;
  worker::ModelFacts model;
  int64_t prefill_multiply_adds = 0;
  std::string kernels;
  std::string description;
  int threads = 0;
};

std::vector<int32_t> RandomIds(int64_t count, int64_t vocab, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab));
  return ids;
}

// One timed prefill of a prompt. 0 tokens: 0.
absl::StatusOr<double> TimePrefill(SequenceRunner& runner, std::span<const int32_t> prompt) {
  const SystemClock clock;
  const MonotonicTime start = clock.Now();
  KVIST_RETURN_IF_ERROR(runner.Prefill(0, prompt, nullptr));
  return static_cast<double>(prompt.size()) / SecondsBetween(start, clock.Now());
}

// One timed greedy decode of all sequences from `depth` on.
absl::StatusOr<double> TimeDecode(SequenceRunner& runner, const BenchFlags& flags,
                                  const worker::KernelTable& kernels) {
  const SystemClock clock;
  std::vector<int32_t> tokens(flags.batch, 1);
  const MonotonicTime start = clock.Now();
  for (int64_t i = 0; i < flags.new_tokens; ++i) {
    KVIST_ASSIGN_OR_RETURN(const worker::Logits logits, runner.Decode(tokens, flags.depth + i));
    for (int s = 0; s < flags.batch; ++s) {
      tokens[s] = static_cast<int32_t>(kernels.argmax(logits.row(s), logits.vocab));
    }
  }
  return static_cast<double>(flags.new_tokens * flags.batch) / SecondsBetween(start, clock.Now());
}

absl::Status RunRounds(const BenchFlags& flags, worker::Backend& backend,
                       const worker::KernelTable& kernels, const SequenceSizes& sizes,
                       BenchResult* result) {
  SequenceRunner runner(&backend, sizes);
  const int64_t vocab = backend.model().vocab;
  const std::vector<int32_t> prompt = RandomIds(flags.prompt_tokens, vocab, flags.seed);
  std::vector<double> prefill;
  std::vector<double> decode;
  // The first round warms caches and clocks up and does not count.
  for (int round = 0; round <= flags.rounds; ++round) {
    std::fprintf(stderr, "round %d of %d%s\n", round, flags.rounds, round == 0 ? " (warm-up)" : "");
    if (flags.prompt_tokens > 0) {
      KVIST_ASSIGN_OR_RETURN(const double speed, TimePrefill(runner, prompt));
      if (round > 0) prefill.push_back(speed);
    }
    if (flags.new_tokens == 0) continue;
    // The prompt's round has overwritten sequence 0.
    for (int s = 0; flags.depth > 0 && s < (round == 0 ? flags.batch : 1); ++s) {
      KVIST_RETURN_IF_ERROR(
          runner.Prefill(s, RandomIds(flags.depth, vocab, flags.seed + 1 + s), nullptr));
    }
    KVIST_ASSIGN_OR_RETURN(const double speed, TimeDecode(runner, flags, kernels));
    if (round > 0) decode.push_back(speed);
  }
  result->prefill = SpreadOf(std::move(prefill));
  result->decode = SpreadOf(std::move(decode));
  return absl::OkStatus();
}

absl::StatusOr<BenchResult> Bench(const BenchFlags& flags) {
  KVIST_ASSIGN_OR_RETURN(const auto file, OpenModel(flags.model.model));
  ModelFlags model = flags.model;
  model.kv_formats = {flags.kv_format};
  KVIST_ASSIGN_OR_RETURN(worker::CpuBackendOptions options, BackendOptions(model));
  KVIST_ASSIGN_OR_RETURN(const worker::KernelTable* kernels, worker::SelectKernels(model.kernels));
  const SequenceSizes sizes{
      .sequences = flags.batch,
      .tokens_each = std::max<int64_t>({flags.prompt_tokens, flags.depth + flags.new_tokens, 1})};
  SizeFor(sizes, &options);
  KVIST_ASSIGN_OR_RETURN(const auto backend, LoadBackend(*file, options));
  BenchResult result;
  result.threads = ComputeThreads(flags.model);
  KVIST_ASSIGN_OR_RETURN(result.limits, MeasureLimits(result.threads, kernels->name));
  result.model = backend->model();
  KVIST_ASSIGN_OR_RETURN(const worker::ModelConfig config, worker::ReadModelConfig(*file));
  result.prefill_multiply_adds = PrefillMultiplyAdds(config, flags.prompt_tokens);
  result.kernels = std::string(kernels->name);
  result.description = backend->description();
  KVIST_RETURN_IF_ERROR(RunRounds(flags, *backend, *kernels, sizes, &result));
  return result;
}

// The share of the memory bandwidth that reading the weights once per step takes. Sequences share a
// step.
double DecodeShare(const BenchResult& result, int batch) {
  const double steps = result.decode.median / batch;
  return steps * static_cast<double>(result.model.weight_bytes) /
         result.limits.memory_bandwidth_bytes_per_second;
}

// The share of the int8 peak that the prompt's multiply-adds take, attention included.
double PrefillShare(const BenchResult& result, int64_t tokens) {
  if (tokens == 0) return 0;
  const double prompts = result.prefill.median / static_cast<double>(tokens);
  return prompts * static_cast<double>(result.prefill_multiply_adds) /
         result.limits.int8_macs_per_second;
}

int RunBenchEngine(const BenchFlags& flags) {
  const auto result = Bench(flags);
  if (!result.ok()) return ReportLocalError(result.status());
  const double share = DecodeShare(*result, flags.batch);
  const double prefill_share = PrefillShare(*result, flags.prompt_tokens);
  if (flags.output == "json") {
    PrintJson(
        {{"prefill_tokens_per_second", result->prefill.median},
         {"decode_tokens_per_second", result->decode.median},
         {"prefill", SpreadJson(result->prefill)},
         {"decode", SpreadJson(result->decode)},
         {"limit",
          {{"memory_bandwidth_bytes_per_second", result->limits.memory_bandwidth_bytes_per_second},
           {"int8_macs_per_second", result->limits.int8_macs_per_second},
           {"weight_bytes", result->model.weight_bytes},
           {"decode_share_of_bandwidth", share},
           {"prefill_share_of_int8_peak", prefill_share}}},
         {"cpu", ReadMachineFacts().cpu},
         {"kernels", result->kernels},
         {"backend", result->description},
         {"model", result->model.name},
         {"threads", result->threads},
         {"prompt", flags.prompt_tokens},
         {"new", flags.new_tokens},
         {"batch", flags.batch},
         {"depth", flags.depth},
         {"rounds", flags.rounds},
         {"kv_format", flags.kv_format}});
    return kExitOk;
  }
  std::printf("%s; %s, %d threads\n", ReadMachineFacts().cpu.c_str(), result->kernels.c_str(),
              result->threads);
  std::printf("limits     %.1f GB/s read, %.1f G int8 multiply-adds/s\n",
              result->limits.memory_bandwidth_bytes_per_second / 1e9,
              result->limits.int8_macs_per_second / 1e9);
  std::printf("prefill    %.1f tok/s (%.1f to %.1f), %lld tokens; %.0f %% of the multiply-adds\n",
              result->prefill.median, result->prefill.min, result->prefill.max,
              static_cast<long long>(flags.prompt_tokens), 100 * prefill_share);
  std::printf(
      "decode     %.1f tok/s (%.1f to %.1f), %d sequences of %lld at depth %lld; "
      "weights alone take %.0f %% of the bandwidth\n",
      result->decode.median, result->decode.min, result->decode.max, flags.batch,
      static_cast<long long>(flags.new_tokens), static_cast<long long>(flags.depth), 100 * share);
  return kExitOk;
}

}  // namespace

void AddBenchEngine(CLI::App& bench, Run* run) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = AddCommand(
      bench, "engine", "Prefill and decode speed of a model, without services.",
      "  kvist bench engine --model smollm2 --threads 2 --prompt 512 --new 128\n"
      "  kvist bench engine --model gemma3 --batch 16 --prompt 128 --depth 2048 --output json\n",
      run, flags, &RunBenchEngine);
  AddModelFlag(command, &flags->model.model);
  AddComputeFlags(command, &flags->model);
  constexpr int64_t kMostTokens = 1 << 20;
  command->add_option("--prompt", flags->prompt_tokens, "tokens of the prompt; 0: no prefill")
      ->check(CLI::Range(int64_t{0}, kMostTokens))
      ->capture_default_str();
  command->add_option("--new", flags->new_tokens, "tokens decoded by each sequence; 0: no decode")
      ->check(CLI::Range(int64_t{0}, kMostTokens))
      ->capture_default_str();
  command->add_option("--batch", flags->batch, "sequences decoded together")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--depth", flags->depth, "tokens before the first decoded one")
      ->check(CLI::Range(int64_t{0}, kMostTokens))
      ->capture_default_str();
  command->add_option("--rounds", flags->rounds, "after a warm-up round")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "of the random prompts")->capture_default_str();
  command->add_option("--kv-format", flags->kv_format, "f32, f16, bf16, q8 or q4")
      ->capture_default_str();
  command
      ->add_option("--max-batch-tokens", flags->model.max_batch_tokens,
                   "tokens of one step at most")
      ->check(CLI::Range(int64_t{1}, int64_t{65536}))
      ->capture_default_str();
  AddOutputFlag(command, &flags->output);
}

}  // namespace kvist::services
