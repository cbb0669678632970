// The classic comparison of KV caches: the same completion with each kind, its time and its memory.
#ifndef KVIST_SERVICES_CLI_KV_CACHE_BENCH_H_
#define KVIST_SERVICES_CLI_KV_CACHE_BENCH_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "cache_manager/attention_span.h"
#include "worker/backend/backend.h"
#include "worker/backend/cpu_backend.h"

namespace kvist::services {

// The kind with a window, named as its preset.
inline constexpr std::string_view kWindowedKvCache = "sliding_window";

// The names of all kinds, those of all presets (CachePresetNames) among them: "dynamic" is "paged",
// "quantized" is "q8".
std::vector<std::string> KvCacheKinds();
// The classic comparison: "none", "concat", "static", "paged". All of them give the same tokens.
std::vector<std::string> ClassicKvCacheKinds();

struct KvCacheBenchOptions {
  std::vector<int32_t> prompt_ids;
  std::vector<std::string> caches = ClassicKvCacheKinds();
  std::vector<int64_t> new_tokens;  // a group of cells each
  int runs = 10;                    // of each cell
  // What "sliding_window" sees; all, where a completion is no longer.
  cache_manager::AttentionSpan window = {.window_tokens = 256, .sink_tokens = 4};
  // A cell whose first run takes longer has no second one.
  double budget_seconds = 300;
  // Called before each run.
  std::function<void(std::string_view cache, int64_t new_tokens, int run)> progress;
};

// A turn that goes on from a completion whose blocks the pools have evicted, until its first token.
struct NextTurn {
  double seconds = 0;             // with the blocks on the disk: read back, where that is faster
  int64_t restored_blocks = 0;    // then; 0: computing them was measured to be faster
  double recomputed_seconds = 0;  // without a disk
};

// One cell: a kind of cache and a number of new tokens.
struct KvCacheCell {
  std::string cache;
  int64_t new_tokens = 0;
  std::vector<double> seconds;  // of each run: the prompt and all new tokens; "offloaded": until
                                // the blocks are on the disk
  // Of KV, after the last token: what a next token would find. Of `none`: 0.
  int64_t kv_bytes = 0;
  // The most bytes of KV at once: scratch of `none`, the copy that `concat` grows by.
  int64_t peak_bytes = 0;
  std::vector<NextTurn> next_turns;  // of each run; empty for all but "offloaded"
};

// Sizes a backend for RunKvCacheBench: context, pools, one sequence.
void SizeForKvCacheBench(const KvCacheBenchOptions& options, worker::CpuBackendOptions* backend);

// Runs every cell: the kinds take turns, so that they see the same neighbours on the machine. The
// cells of one number of new tokens come one after the other, in the order of the table's kinds.
// Greedy, stops ignored; KV in the backend's first format, but for "quantized", "q8" and "q4".
// "offloaded" writes into a folder of its own among the temporary ones. INTERNAL if two kinds that
// promise the same tokens (all but "sliding_window", "quantized", "q8" and "q4"), or two runs of
// one kind, generate different ones; INVALID_ARGUMENT for an unknown kind; errors of the backend
// and of the disk tier. REQUIRES: the backend was sized for `options`; prompt, kinds and numbers
// not empty, runs >= 1.
absl::StatusOr<std::vector<KvCacheCell>> RunKvCacheBench(std::unique_ptr<worker::Backend> backend,
                                                         const KvCacheBenchOptions& options);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CLI_KV_CACHE_BENCH_H_
