#include "services/cli/kv_cache_bench.h"

#include <stdlib.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iterator>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cache_manager/block_pool.h"
#include "common/base/clock.h"
#include "common/base/int_math.h"
#include "common/base/status.h"
#include "services/cli/sequence_runner.h"
#include "worker/engine/engine_core.h"
#include "worker/engine/offload.h"
#include "worker/kv/concat_cache.h"
#include "worker/kv/tiers/disk_store.h"
#include "worker/sampling/sampler.h"

namespace kvist::services {
namespace {

// The kinds compared, and what the engine is asked for each. All presets are among them.
struct Kind {
  std::string_view name;
  bool in_engine;  // concat has no place in the engine
  bool exact;      // gives the same tokens as all other exact ones
  worker::CacheOptions options;
};
constexpr Kind kKinds[] = {
    {"none", true, true, {.allocation = worker::Allocation::kNone}},
    {"concat", false, true, {}},
    {"static", true, true, {.allocation = worker::Allocation::kStatic}},
    {"paged", true, true, {.allocation = worker::Allocation::kPaged}},
    {"dynamic", true, true, {.allocation = worker::Allocation::kPaged}},
    {"offloaded", true, true, {.offload = worker::OffloadTier::kDisk}},
    {kWindowedKvCache, true, false, {}},  // of the span that the options say
    {"quantized", true, false, {.kv_format = worker::KvFormat::kQ8}},
    {"q8", true, false, {.kv_format = worker::KvFormat::kQ8}},
    {"q4", true, false, {.kv_format = worker::KvFormat::kQ4}},
};
constexpr const char* kClassicKinds[] = {"none", "concat", "static", "paged"};

constexpr std::chrono::seconds kMostFlushTime{60};

struct RunResult {
  absl::Status status;
  std::vector<int32_t> ids;
  double seconds = 0;
  int64_t kv_bytes = 0;
  int64_t peak_bytes = 0;
  std::optional<NextTurn> next_turn;
};

// Hands everything on, and tells when a batch is about to run. Single-threaded.
class ObservedBackend final : public worker::Backend {
 public:
  explicit ObservedBackend(std::unique_ptr<worker::Backend> backend)
      : backend_(std::move(backend)) {}

  std::function<void()> on_run;  // may be empty

  const worker::ModelFacts& model() const override { return backend_->model(); }
  const std::vector<worker::PoolSpec>& pools() const override { return backend_->pools(); }
  std::string numerics_id() const override { return backend_->numerics_id(); }
  std::string description() const override { return backend_->description(); }
  std::vector<worker::MemoryPart> memory() const override { return backend_->memory(); }
  absl::StatusOr<worker::Logits> Run(const worker::Batch& batch) override {
    if (on_run) on_run();
    return backend_->Run(batch);
  }
  int64_t max_batch_tokens() const override { return backend_->max_batch_tokens(); }
  int64_t max_logit_rows() const override { return backend_->max_logit_rows(); }
  void CopyBlock(int32_t pool, int32_t from, int32_t to) override {
    backend_->CopyBlock(pool, from, to);
  }
  void ReadBlock(int32_t pool, int32_t block, std::span<std::byte> out) const override {
    backend_->ReadBlock(pool, block, out);
  }
  void WriteBlock(int32_t pool, int32_t block, std::span<const std::byte> bytes) override {
    backend_->WriteBlock(pool, block, bytes);
  }
  void ReadTokens(int32_t pool, int32_t block, int32_t tokens,
                  std::span<std::byte> out) const override {
    backend_->ReadTokens(pool, block, tokens, out);
  }

 private:
  std::unique_ptr<worker::Backend> backend_;
};

// Notes the ids, and the bytes held when the last one came: just after, the request's end lets go
// of them. Single-threaded.
class RunSink final : public worker::TokenSink {
 public:
  RunSink(int64_t new_tokens, std::function<int64_t()> held_bytes, RunResult* result)
      : new_tokens_(new_tokens), held_bytes_(std::move(held_bytes)), result_(result) {}

  void OnTokens(std::span<const worker::TokenOutput> tokens) override {
    for (const worker::TokenOutput& token : tokens) result_->ids.push_back(token.id);
    if (static_cast<int64_t>(result_->ids.size()) == new_tokens_) {
      result_->kv_bytes = held_bytes_();
    }
  }
  void OnProgress(int64_t, int64_t) override {}
  void OnFinished(const worker::FinishInfo& info) override { result_->status = info.status; }

 private:
  const int64_t new_tokens_;
  const std::function<int64_t()> held_bytes_;
  RunResult* const result_;
};

// A folder of its own among the temporary ones, gone with all that is in it at the end.
class ScratchFolder {
 public:
  ScratchFolder() = default;
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  ~ScratchFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }

  // REQUIRES: called once. UNAVAILABLE if there can be none.
  absl::Status Make() {
    std::error_code error;
    std::string path = std::filesystem::temp_directory_path(error) / "kvist-bench-XXXXXX";
    if (error || mkdtemp(path.data()) == nullptr) {
      return absl::UnavailableError(
          absl::StrCat("cannot make the folder ", path, " for the offloaded blocks"));
    }
    path_ = std::move(path);
    return absl::OkStatus();
  }
  const std::string& path() const { return path_; }  // empty before Make

 private:
  std::string path_;
};

// Runs single completions on one backend. Single-threaded.
class Completer {
 public:
  // REQUIRES: clock outlives it.
  Completer(const worker::EngineOptions& options, const cache_manager::AttentionSpan& window,
            std::unique_ptr<ObservedBackend> backend, const Clock* clock)
      : window_(window),
        clock_(clock),
        disk_(options.disk),
        backend_(backend.get()),
        core_(options, std::move(backend), clock) {}

  absl::StatusOr<RunResult> Run(const Kind& kind, const std::vector<int32_t>& prompt,
                                int64_t new_tokens) {
    RunResult result;
    result.ids.reserve(static_cast<size_t>(new_tokens));
    KVIST_RETURN_IF_ERROR(kind.in_engine ? RunInEngine(kind, prompt, new_tokens, &result)
                                         : RunConcat(prompt, new_tokens, &result));
    if (kind.options.offload != worker::OffloadTier::kOff) {
      KVIST_ASSIGN_OR_RETURN(result.next_turn, RunNextTurn(kind, prompt, result.ids));
    }
    return result;
  }

 private:
  // Of the completion just run, whose blocks are on the disk.
  absl::StatusOr<NextTurn> RunNextTurn(const Kind& kind, const std::vector<int32_t>& prompt,
                                       const std::vector<int32_t>& ids) {
    NextTurn turn;
    const uint64_t restored = core_.stats().offload.restored_blocks;
    KVIST_ASSIGN_OR_RETURN(turn.seconds, SecondsOfNextTurn(kind.options, prompt, ids));
    turn.restored_blocks = static_cast<int64_t>(core_.stats().offload.restored_blocks - restored);
    worker::CacheOptions without = kind.options;
    without.offload = worker::OffloadTier::kOff;
    KVIST_ASSIGN_OR_RETURN(turn.recomputed_seconds, SecondsOfNextTurn(without, prompt, ids));
    return turn;
  }

  // Seconds until the last of `ids` comes once more, of a turn that has all before it and finds
  // nothing in the pools.
  absl::StatusOr<double> SecondsOfNextTurn(const worker::CacheOptions& cache,
                                           const std::vector<int32_t>& prompt,
                                           const std::vector<int32_t>& ids) {
    const worker::EngineState state = core_.state();
    for (const auto& pool : state.pools) {
      pool->EvictSome(std::numeric_limits<int32_t>::max(), cache_manager::EvictionCause::kCommand);
    }
    worker::GenerateRequest request;
    request.id = RequestId(absl::StrCat("next-turn-", runs_));
    request.tenant_salt = SaltOf(runs_);
    request.prompt_ids = prompt;
    request.prompt_ids.insert(request.prompt_ids.end(), ids.begin(), ids.end() - 1);
    request.stop.max_new_tokens = 1;
    request.cache = cache;
    KVIST_RETURN_IF_ERROR(worker::PrepareRequest(core_.limits(), &request));
    RunResult result;
    const MonotonicTime start = clock_->Now();
    core_.Add(std::move(request),
              std::make_shared<RunSink>(
                  1, [] { return 0; }, &result),
              start);
    KVIST_RETURN_IF_ERROR(StepToEnd());
    const double seconds = SecondsBetween(start, clock_->Now());
    KVIST_RETURN_IF_ERROR(result.status);
    if (result.ids.size() != 1 || result.ids[0] != ids.back()) {
      return absl::InternalError("a turn after eviction generates another token than before");
    }
    return seconds;
  }

  // A salt of its own for each run, or the prompt would be found in the cache of the run before.
  static std::string SaltOf(int64_t run) { return absl::StrCat("run-", run); }

  absl::Status StepToEnd() {
    while (!core_.idle()) {
      if (core_.Step() || core_.idle()) continue;
      // It may wait for blocks that are being read.
      if (disk_ == nullptr || !disk_->WaitForDone(std::nullopt)) {
        return absl::InternalError("the engine has a request and nothing to run");
      }
    }
    return absl::OkStatus();
  }

  int64_t HeldBytes() {
    int64_t bytes = 0;
    const worker::EngineState state = core_.state();
    for (size_t i = 0; i < state.pools.size(); ++i) {
      const cache_manager::PoolCounts counts = state.pools[i]->Counts();
      bytes += (counts.active + counts.reserved) * backend_->pools()[i].block_bytes;
    }
    return bytes;
  }

  absl::Status RunInEngine(const Kind& kind, const std::vector<int32_t>& prompt, int64_t new_tokens,
                           RunResult* result) {
    worker::GenerateRequest request;
    request.id = RequestId(absl::StrCat("run-", ++runs_));
    request.tenant_salt = SaltOf(runs_);
    request.prompt_ids = prompt;
    request.stop.max_new_tokens = new_tokens;
    request.cache = kind.options;
    if (kind.name == kWindowedKvCache &&
        worker::MostStoredTokens(request) > window_.window_tokens) {
      request.cache.attention = window_;
    }
    KVIST_RETURN_IF_ERROR(worker::PrepareRequest(core_.limits(), &request));
    backend_->on_run = [&] { result->peak_bytes = std::max(result->peak_bytes, HeldBytes()); };
    const MonotonicTime start = clock_->Now();
    core_.Add(std::move(request),
              std::make_shared<RunSink>(
                  new_tokens, [this] { return HeldBytes(); }, result),
              start);
    KVIST_RETURN_IF_ERROR(StepToEnd());
    core_.FlushOffload(kMostFlushTime);
    result->seconds = SecondsBetween(start, clock_->Now());
    backend_->on_run = nullptr;
    return result->status;
  }

  absl::Status RunConcat(const std::vector<int32_t>& prompt, int64_t new_tokens,
                         RunResult* result) {
    const worker::ModelFacts& model = backend_->model();
    const worker::KvFormat format = backend_->pools().front().format;
    const worker::SamplingOptions greedy;
    worker::Sampler sampler(model.vocab);
    worker::SampleOutput sample;
    worker::Batch batch;
    batch.slices.push_back({.kv_format = format});
    worker::SequenceSlice& slice = batch.slices.front();
    const MonotonicTime start = clock_->Now();
    worker::ConcatCache cache(model.groups, format);
    slice.contiguous = &cache.kv();
    slice.tokens = prompt;
    for (int64_t i = 0; i < new_tokens; ++i) {
      slice.first_position = cache.tokens();
      slice.logits_from = static_cast<int64_t>(slice.tokens.size()) - 1;
      KVIST_RETURN_IF_ERROR(cache.Append(static_cast<int64_t>(slice.tokens.size())));
      KVIST_ASSIGN_OR_RETURN(const worker::Logits logits, backend_->Run(batch));
      KVIST_RETURN_IF_ERROR(
          sampler.Sample({.logits = {logits.row(0), static_cast<size_t>(logits.vocab)},
                          .options = greedy,
                          .position = cache.tokens()},
                         &sample));
      result->ids.push_back(sample.id);
      slice.tokens = std::span<const int32_t>(result->ids).last(1);
    }
    result->kv_bytes = cache.bytes();
    result->peak_bytes = cache.peak_bytes();
    result->seconds = SecondsBetween(start, clock_->Now());
    return absl::OkStatus();
  }

  const cache_manager::AttentionSpan window_;
  const Clock* const clock_;
  const std::shared_ptr<worker::DiskStore> disk_;  // null: none
  ObservedBackend* const backend_;                 // the core's
  worker::EngineCore core_;
  int64_t runs_ = 0;
};

absl::StatusOr<std::vector<const Kind*>> FindKinds(const std::vector<std::string>& names) {
  std::vector<const Kind*> kinds;
  for (const std::string& name : names) {
    const auto kind = std::find_if(std::begin(kKinds), std::end(kKinds),
                                   [&](const Kind& k) { return k.name == name; });
    if (kind == std::end(kKinds)) return InvalidField("cache", "there is no kind " + name);
    kinds.push_back(kind);
  }
  return kinds;
}

absl::Status CheckSameIds(const std::vector<int32_t>& expected, const std::vector<int32_t>& ids,
                          std::string_view kind) {
  if (ids == expected) return absl::OkStatus();
  const auto [a, b] = std::mismatch(expected.begin(), expected.end(), ids.begin(), ids.end());
  return absl::InternalError(absl::StrCat("the cache kind ", ToAbsl(kind),
                                          " generates other tokens than before, from token ",
                                          a - expected.begin(), " on"));
}

// A store with room for two completions in each pool.
absl::StatusOr<std::shared_ptr<worker::DiskStore>> OpenStore(const std::string& folder,
                                                             const Clock* clock,
                                                             const worker::Backend& backend) {
  int64_t bytes = 1 << 20;  // the files' heads
  for (const worker::PoolSpec& pool : backend.pools())
    bytes += 2 * pool.num_blocks * RoundUp<int64_t>(pool.block_bytes, 1 << 12);
  return worker::OpenDiskStore({.directory = folder, .bytes = bytes, .clock = clock}, backend);
}

}  // namespace

std::vector<std::string> KvCacheKinds() {
  std::vector<std::string> names;
  for (const Kind& kind : kKinds) names.emplace_back(kind.name);
  return names;
}

std::vector<std::string> ClassicKvCacheKinds() {
  return {std::begin(kClassicKinds), std::end(kClassicKinds)};
}

void SizeForKvCacheBench(const KvCacheBenchOptions& options, worker::CpuBackendOptions* backend) {
  const int64_t tokens = static_cast<int64_t>(options.prompt_ids.size()) +
                         *std::max_element(options.new_tokens.begin(), options.new_tokens.end());
  // Pools twice as large as one sequence: reservations may take half of a pool.
  SizeFor({.sequences = 2, .tokens_each = tokens}, backend);
  for (const Kind& kind : kKinds) {
    if (!kind.options.kv_format.has_value()) continue;
    const auto asked = std::find(options.caches.begin(), options.caches.end(), kind.name);
    std::vector<worker::KvFormat>& formats = backend->kv_formats;
    const auto known = std::find(formats.begin(), formats.end(), *kind.options.kv_format);
    if (asked != options.caches.end() && known == formats.end())
      formats.push_back(*kind.options.kv_format);
  }
}

absl::StatusOr<std::vector<KvCacheCell>> RunKvCacheBench(std::unique_ptr<worker::Backend> backend,
                                                         const KvCacheBenchOptions& options) {
  KVIST_ASSIGN_OR_RETURN(const std::vector<const Kind*> kinds, FindKinds(options.caches));
  const SystemClock clock;
  ScratchFolder folder;
  worker::EngineOptions engine;
  const bool offloads = std::any_of(kinds.begin(), kinds.end(), [](const Kind* kind) {
    return kind->options.offload != worker::OffloadTier::kOff;
  });
  if (offloads) {
    KVIST_RETURN_IF_ERROR(folder.Make());
    KVIST_ASSIGN_OR_RETURN(engine.disk, OpenStore(folder.path(), &clock, *backend));
  }
  Completer completer(engine, options.window, std::make_unique<ObservedBackend>(std::move(backend)),
                      &clock);
  // Not counted: it warms caches and clocks up.
  const int64_t fewest = *std::min_element(options.new_tokens.begin(), options.new_tokens.end());
  KVIST_RETURN_IF_ERROR(completer.Run(*kinds.back(), options.prompt_ids, fewest).status());
  std::vector<KvCacheCell> cells;
  for (const int64_t new_tokens : options.new_tokens) {
    const size_t first = cells.size();
    for (const std::string& name : options.caches) {
      cells.push_back({.cache = name, .new_tokens = new_tokens});
    }
    std::map<std::string_view, std::vector<int32_t>> expected;  // "": of all exact kinds
    for (int run = 0; run < options.runs; ++run) {
      for (size_t k = 0; k < kinds.size(); ++k) {
        KvCacheCell& cell = cells[first + k];
        if (run > 0 && cell.seconds.front() > options.budget_seconds) continue;
        if (options.progress) options.progress(cell.cache, new_tokens, run);
        KVIST_ASSIGN_OR_RETURN(RunResult result,
                               completer.Run(*kinds[k], options.prompt_ids, new_tokens));
        std::vector<int32_t>& ids = expected[kinds[k]->exact ? "" : kinds[k]->name];
        if (ids.empty()) ids = result.ids;
        KVIST_RETURN_IF_ERROR(CheckSameIds(ids, result.ids, cell.cache));
        cell.seconds.push_back(result.seconds);
        cell.kv_bytes = std::max(cell.kv_bytes, result.kv_bytes);
        cell.peak_bytes = std::max(cell.peak_bytes, result.peak_bytes);
        if (result.next_turn.has_value()) cell.next_turns.push_back(*result.next_turn);
      }
    }
  }
  return cells;
}

}  // namespace kvist::services
