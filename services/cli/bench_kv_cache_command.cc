// kvist bench kv-cache: what a KV cache is worth, and what each kind of it costs.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status.h"
#include "services/cli/bar_chart.h"
#include "services/cli/commands.h"
#include "services/cli/kv_cache_bench.h"
#include "services/cli/machine_facts.h"
#include "services/cli/model_flags.h"
#include "services/runtime/cache_params.h"
#include "worker/kernels/kernel_table.h"
#include "worker/model/registry.h"

namespace kvist::services {
namespace {

constexpr char kPrompt[] = "The red cat was";
constexpr int kChartWidth = 50;
constexpr int64_t kMostNewTokens = 1 << 20;
constexpr size_t kMostCounts = 64;

struct KvCacheFlags {
  ModelFlags model;
  int runs = 10;
  std::vector<int64_t> new_tokens = {1, 10, 100, 300, 1000};
  std::vector<std::string> caches = ClassicKvCacheKinds();
  cache_manager::AttentionSpan window = KvCacheBenchOptions().window;
  double budget_seconds = 300;
  std::string output;
};

struct KvCacheResult {
  std::vector<KvCacheCell> cells;
  std::string model;
  std::string kernels;
  std::string backend;
  size_t prompt_tokens = 0;
};

double MeanOf(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Of the sample: with n - 1. 0 of a single value.
double DeviationOf(const std::vector<double>& values) {
  if (values.size() < 2) return 0;
  const double mean = MeanOf(values);
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

// As of a request with such a window, where a kind to compare has one.
absl::Status CheckWindow(const KvCacheFlags& flags, int64_t context_tokens) {
  const auto& caches = flags.caches;
  if (std::find(caches.begin(), caches.end(), kWindowedKvCache) == caches.end())
    return absl::OkStatus();
  KVIST_ASSIGN_OR_RETURN(const v1::CacheParams asked,
                         CacheParamsOf({.preset = std::string(kWindowedKvCache),
                                        .window_tokens = flags.window.window_tokens,
                                        .sink_tokens = flags.window.sink_tokens}));
  return ValidateCacheParams(asked, context_tokens);
}

absl::StatusOr<KvCacheResult> Bench(const KvCacheFlags& flags) {
  if (flags.new_tokens.empty() || flags.new_tokens.size() > kMostCounts) {
    return InvalidField("--new", absl::StrCat("takes 1 to ", kMostCounts, " numbers"));
  }
  KvCacheBenchOptions options{.caches = flags.caches,
                              .new_tokens = flags.new_tokens,
                              .runs = flags.runs,
                              .window = flags.window,
                              .budget_seconds = flags.budget_seconds};
  options.progress = [&](std::string_view cache, int64_t new_tokens, int run) {
    std::fprintf(stderr, "%lld new tokens, %s: run %d of %d\n", static_cast<long long>(new_tokens),
                 std::string(cache).c_str(), run + 1, flags.runs);
  };
  KvCacheResult result;
  KVIST_ASSIGN_OR_RETURN(const auto file, OpenModel(flags.model.model));
  KVIST_ASSIGN_OR_RETURN(const auto tokenizer, LoadTokenizer(*file));
  options.prompt_ids = PromptIds(*tokenizer, kPrompt);
  result.prompt_tokens = options.prompt_ids.size();
  KVIST_ASSIGN_OR_RETURN(const worker::ModelConfig config, worker::ReadModelConfig(*file));
  const int64_t most_new = config.context_tokens - static_cast<int64_t>(result.prompt_tokens);
  if (*std::max_element(flags.new_tokens.begin(), flags.new_tokens.end()) > most_new) {
    return InvalidField("--new", absl::StrCat("behind the prompt the model's context has ",
                                              most_new, " tokens left"));
  }
  KVIST_RETURN_IF_ERROR(CheckWindow(flags, config.context_tokens));
  KVIST_ASSIGN_OR_RETURN(worker::CpuBackendOptions backend_options, BackendOptions(flags.model));
  KVIST_ASSIGN_OR_RETURN(const worker::KernelTable* kernels,
                         worker::SelectKernels(flags.model.kernels));
  result.kernels = std::string(kernels->name);
  SizeForKvCacheBench(options, &backend_options);
  KVIST_ASSIGN_OR_RETURN(auto backend, LoadBackend(*file, backend_options));
  result.model = backend->model().name;
  result.backend = backend->description();
  KVIST_ASSIGN_OR_RETURN(result.cells, RunKvCacheBench(std::move(backend), options));
  return result;
}

// What offloading is worth: writing costs time, and pays when a session goes on. Means of all runs.
struct NextTurns {
  double mean_s = 0;             // to the first token, with the disk
  double recomputed_mean_s = 0;  // without
  int restores = 0;              // runs that read the disk; the others found computing faster
};

// nullopt of a kind without a disk.
std::optional<NextTurns> NextTurnsOf(const KvCacheCell& cell) {
  if (cell.next_turns.empty()) return std::nullopt;
  NextTurns all;
  for (const NextTurn& turn : cell.next_turns) {
    all.mean_s += turn.seconds;
    all.recomputed_mean_s += turn.recomputed_seconds;
    if (turn.restored_blocks > 0) ++all.restores;
  }
  all.mean_s /= static_cast<double>(cell.next_turns.size());
  all.recomputed_mean_s /= static_cast<double>(cell.next_turns.size());
  return all;
}

void PrintNextTurns(const std::vector<KvCacheCell>& cells) {
  for (const KvCacheCell& cell : cells) {
    const auto turns = NextTurnsOf(cell);
    if (!turns.has_value()) continue;
    std::printf(
        "%s, %lld new tokens: the next turn, after eviction, had its first token after %.4f s "
        "(read from the disk in %d of %zu runs), without the disk after %.4f s\n",
        cell.cache.c_str(), static_cast<long long>(cell.new_tokens), turns->mean_s, turns->restores,
        cell.next_turns.size(), turns->recomputed_mean_s);
  }
}

nlohmann::ordered_json JsonOf(const KvCacheFlags& flags, const KvCacheResult& result) {
  auto rows = nlohmann::ordered_json::array();
  for (const KvCacheCell& cell : result.cells) {
    nlohmann::ordered_json row = {{"cache", cell.cache},
                                  {"new_tokens", cell.new_tokens},
                                  {"mean_s", MeanOf(cell.seconds)},
                                  {"std_s", DeviationOf(cell.seconds)},
                                  {"kv_bytes", cell.kv_bytes},
                                  {"peak_bytes", cell.peak_bytes},
                                  {"runs", cell.seconds.size()}};
    if (const auto turns = NextTurnsOf(cell); turns.has_value()) {
      row["next_turn"] = {{"mean_s", turns->mean_s},
                          {"restores", turns->restores},
                          {"recomputed_mean_s", turns->recomputed_mean_s}};
    }
    rows.push_back(std::move(row));
  }
  return {{"rows", rows},
          {"prompt", kPrompt},
          {"prompt_tokens", result.prompt_tokens},
          {"runs", flags.runs},
          {"budget_seconds", flags.budget_seconds},
          {"kv_format", flags.model.kv_formats.front()},
          {"cpu", ReadMachineFacts().cpu},
          {"kernels", result.kernels},
          {"backend", result.backend},
          {"model", result.model},
          {"threads", ComputeThreads(flags.model)}};
}

void PrintPeople(const KvCacheFlags& flags, const KvCacheResult& result) {
  std::printf("%s; %s on %s\n", ReadMachineFacts().cpu.c_str(), result.model.c_str(),
              result.backend.c_str());
  std::printf("prompt \"%s\" (%zu tokens), %s KV; all exact kinds gave the same tokens\n\n",
              kPrompt, result.prompt_tokens, flags.model.kv_formats.front().c_str());
  std::vector<std::vector<std::string>> table = {
      {"new tokens", "cache", "mean", "deviation", "KV at the end", "KV at most", "runs"}};
  std::vector<Bar> bars;
  bool marked = false;
  for (const KvCacheCell& cell : result.cells) {
    const bool fewer = static_cast<int>(cell.seconds.size()) < flags.runs;
    marked = marked || fewer;
    const std::string count = absl::StrCat(cell.new_tokens);
    const std::string mean = absl::StrFormat("%.4f s", MeanOf(cell.seconds));
    table.push_back({count, cell.cache, mean, absl::StrFormat("%.4f s", DeviationOf(cell.seconds)),
                     HumanBytes(cell.kv_bytes), HumanBytes(cell.peak_bytes),
                     absl::StrCat(cell.seconds.size(), fewer ? " *" : "")});
    bars.push_back({count, cell.cache, MeanOf(cell.seconds), mean});
  }
  PrintTable(table);
  if (marked) {
    std::printf("* the first run took longer than %.0f s (--budget-seconds)\n",
                flags.budget_seconds);
  }
  PrintNextTurns(result.cells);
  std::printf("\nMean seconds by new tokens and cache\n%s", LogBarChart(bars, kChartWidth).c_str());
}

int RunBenchKvCache(const KvCacheFlags& flags) {
  const auto result = Bench(flags);
  if (!result.ok()) return ReportLocalError(result.status());
  if (flags.output == "json") {
    PrintJson(JsonOf(flags, *result));
  } else {
    PrintPeople(flags, *result);
  }
  return kExitOk;
}

}  // namespace

void AddBenchKvCache(CLI::App& bench, Run* run) {
  auto flags = std::make_shared<KvCacheFlags>();
  CLI::App* command = AddCommand(
      bench, "kv-cache",
      "Time and memory of a completion with each kind of KV cache: none recomputes everything for "
      "every token, concat copies the whole cache to append to it, static takes all blocks at the "
      "start, paged (dynamic) one at a time. Further kinds by --cache: offloaded writes the blocks "
      "to the disk at the end, which its time has in it, and tells what the next turn takes once "
      "the pools have evicted them, with the disk and without; sliding_window sees the last tokens "
      "only, q8 (quantized) and q4 store fewer bits; these three may give other tokens.",
      "  kvist bench kv-cache --model smollm2 --runs 2 --new 1,10,20\n"
      "  kvist bench kv-cache --model smollm2 --runs 3 --new 900 --cache "
      "paged,offloaded,quantized,q4\n"
      "  kvist bench kv-cache --model gemma3 --runs 1 --new 10 --output json\n",
      run, flags, &RunBenchKvCache);
  AddModelFlag(command, &flags->model.model);
  AddComputeFlags(command, &flags->model);
  command->add_option("--runs", flags->runs, "of each cell")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--new", flags->new_tokens, "numbers of new tokens")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, kMostNewTokens))
      ->capture_default_str();
  command->add_option("--cache", flags->caches, "kinds to compare")
      ->delimiter(',')
      ->check(CLI::IsMember(KvCacheKinds()))
      ->capture_default_str();
  command
      ->add_option("--window", flags->window.window_tokens,
                   "tokens that each one sees in sliding_window, itself included")
      ->capture_default_str();
  command
      ->add_option("--sinks", flags->window.sink_tokens,
                   "first tokens that sliding_window sees from beyond the window")
      ->capture_default_str();
  command
      ->add_option("--budget-seconds", flags->budget_seconds,
                   "a cell whose first run takes longer is run once, and marked")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  AddOutputFlag(command, &flags->output);
}

}  // namespace kvist::services
