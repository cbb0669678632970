#include "services/cli/kv_cache_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "services/runtime/cache_params.h"
#include "tests/support/tiny_model.h"

namespace kvist::services {
namespace {

using ::testing::ElementsAre;

worker::CpuBackendOptions BackendOptionsFor(const KvCacheBenchOptions& options) {
  worker::CpuBackendOptions backend = testing::TinyOptions();
  backend.kernels = "auto";
  SizeForKvCacheBench(options, &backend);
  return backend;
}

absl::StatusOr<std::map<std::string, KvCacheCell>> CellsByCache(
    const std::string& model, const KvCacheBenchOptions& options) {
  auto cells = RunKvCacheBench(testing::OpenTinyModel(model, BackendOptionsFor(options)), options);
  if (!cells.ok()) return cells.status();
  std::map<std::string, KvCacheCell> by_cache;
  for (const KvCacheCell& cell : *cells) by_cache[std::string(cell.cache)] = cell;
  return by_cache;
}

TEST(KvCacheBenchTest, EveryKindHoldsTheBytesOfItsDefinition) {
  const KvCacheBenchOptions options{.prompt_ids = {1, 2, 3, 4, 5}, .new_tokens = {40}, .runs = 2};
  const auto backend = testing::OpenTinyModel("llama_a.Q4_1", BackendOptionsFor(options));
  ASSERT_EQ(backend->pools().size(), 1u);
  const int64_t block = backend->pools()[0].block_bytes;
  const int64_t layers = static_cast<int64_t>(backend->model().groups[0].layers.size());
  const auto cells = CellsByCache("llama_a.Q4_1", options);
  ASSERT_TRUE(cells.ok()) << cells.status();
  // 44 tokens are stored at the end: the last one's KV is not computed. Blocks have 16.
  const KvCacheCell& paged = cells->at("paged");
  EXPECT_EQ(paged.kv_bytes, 3 * block);
  EXPECT_EQ(paged.peak_bytes, 3 * block);
  const KvCacheCell& reserved = cells->at("static");
  EXPECT_EQ(reserved.kv_bytes, 3 * block);  // prompt and 40 new tokens, from the start
  EXPECT_EQ(reserved.peak_bytes, 3 * block);
  const KvCacheCell& none = cells->at("none");
  EXPECT_EQ(none.kv_bytes, 0);
  EXPECT_EQ(none.peak_bytes, 3 * block);  // scratch for the whole sequence
  const KvCacheCell& concat = cells->at("concat");
  EXPECT_EQ(concat.kv_bytes, 3 * block);
  EXPECT_EQ(concat.peak_bytes, 3 * block + 3 * block / layers);  // one layer is there twice
  for (const auto& [name, cell] : *cells) EXPECT_EQ(cell.seconds.size(), 2u) << name;
}

TEST(KvCacheBenchTest, AWindowHoldsItsBlocksAndOffloadingAllOfThem) {
  const KvCacheBenchOptions options{.prompt_ids = {1, 2, 3},
                                    .caches = {"paged", "offloaded", "sliding_window"},
                                    .new_tokens = {200},
                                    .runs = 2,
                                    .window = {.window_tokens = 64, .sink_tokens = 4}};
  const auto cells = CellsByCache("llama_a.Q4_1", options);
  ASSERT_TRUE(cells.ok()) << cells.status();
  const int64_t paged = cells->at("paged").kv_bytes;
  EXPECT_EQ(cells->at("offloaded").kv_bytes, paged);
  // Of 13 blocks of 16 tokens: one with sinks, and five that a window of 64 reaches into.
  EXPECT_EQ(cells->at("sliding_window").kv_bytes, paged / 13 * 6);
}

TEST(KvCacheBenchTest, FewerBitsHoldLess) {
  const KvCacheBenchOptions options{
      .prompt_ids = {1, 2, 3}, .caches = {"paged", "q8", "q4"}, .new_tokens = {40}, .runs = 2};
  const auto cells = CellsByCache("gemma3_a.Q4_0", options);
  ASSERT_TRUE(cells.ok()) << cells.status();
  EXPECT_LT(cells->at("q8").kv_bytes, cells->at("paged").kv_bytes);
  EXPECT_LT(cells->at("q4").kv_bytes, cells->at("q8").kv_bytes);
}

TEST(KvCacheBenchTest, EveryPresetIsAKind) {
  EXPECT_THAT(KvCacheKinds(), ::testing::IsSupersetOf(CachePresetNames()));
  const KvCacheBenchOptions options{.prompt_ids = {1, 2, 3},
                                    .caches = {"paged", "dynamic", "q8", "quantized"},
                                    .new_tokens = {40},
                                    .runs = 2};
  const auto cells = CellsByCache("gemma3_a.Q4_0", options);
  ASSERT_TRUE(cells.ok()) << cells.status();
  EXPECT_EQ(cells->at("dynamic").kv_bytes, cells->at("paged").kv_bytes);
  EXPECT_EQ(cells->at("quantized").kv_bytes, cells->at("q8").kv_bytes);
  EXPECT_LT(cells->at("q8").kv_bytes, cells->at("paged").kv_bytes);
}

TEST(KvCacheBenchTest, ATurnAfterAnOffloadedOneReadsItsBlocksFromTheDisk) {
  const KvCacheBenchOptions options{
      .prompt_ids = {1, 2, 3}, .caches = {"offloaded", "paged"}, .new_tokens = {200}, .runs = 2};
  const auto cells = CellsByCache("llama_a.Q4_1", options);
  ASSERT_TRUE(cells.ok()) << cells.status();
  EXPECT_TRUE(cells->at("paged").next_turns.empty());
  const std::vector<NextTurn>& turns = cells->at("offloaded").next_turns;
  ASSERT_EQ(turns.size(), 2u);
  // All full ones of 202 tokens; the second time none, if computing was measured to be faster.
  EXPECT_EQ(turns[0].restored_blocks, 12);
  EXPECT_TRUE(turns[1].restored_blocks == 12 || turns[1].restored_blocks == 0);
  for (const NextTurn& turn : turns) {
    EXPECT_GT(turn.seconds, 0);
    EXPECT_GT(turn.recomputed_seconds, 0);
  }
}

TEST(KvCacheBenchTest, AWindowOverAllOfAShortCompletionIsNone) {
  const KvCacheBenchOptions options{
      .prompt_ids = {1, 2, 3}, .caches = {"sliding_window", "paged"}, .new_tokens = {2}, .runs = 1};
  const auto cells = CellsByCache("llama_a.Q4_1", options);
  ASSERT_TRUE(cells.ok()) << cells.status();
  EXPECT_EQ(cells->at("sliding_window").kv_bytes, cells->at("paged").kv_bytes);
}

TEST(KvCacheBenchTest, WindowedLayersOfTheNaiveCacheKeepEverything) {
  const KvCacheBenchOptions options{.prompt_ids = {1, 2, 3}, .new_tokens = {90}, .runs = 1};
  const auto cells = CellsByCache("gemma3_a.Q4_0", options);
  ASSERT_TRUE(cells.ok()) << cells.status();
  EXPECT_GT(cells->at("concat").kv_bytes, cells->at("paged").kv_bytes);
}

TEST(KvCacheBenchTest, OnlyTheKindsAskedForRun) {
  KvCacheBenchOptions options{
      .prompt_ids = {1, 2, 3}, .caches = {"concat"}, .new_tokens = {2}, .runs = 1};
  const auto cells = CellsByCache("llama_a.Q4_1", options);
  ASSERT_TRUE(cells.ok()) << cells.status();
  EXPECT_EQ(cells->size(), 1u);
  EXPECT_GT(cells->at("concat").kv_bytes, 0);
  options.caches = {"big"};
  EXPECT_EQ(CellsByCache("llama_a.Q4_1", options).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(KvCacheBenchTest, KindsTakeTurnsAndASlowCellIsRunOnce) {
  std::vector<std::string> order;
  KvCacheBenchOptions options{.prompt_ids = {1, 2, 3}, .new_tokens = {1, 3}, .runs = 2};
  options.progress = [&](std::string_view cache, int64_t new_tokens, int run) {
    order.push_back(std::string(cache) + " " + std::to_string(new_tokens) + " " +
                    std::to_string(run));
  };
  ASSERT_TRUE(CellsByCache("llama_a.Q4_1", options).ok());
  EXPECT_THAT(order, ElementsAre("none 1 0", "concat 1 0", "static 1 0", "paged 1 0", "none 1 1",
                                 "concat 1 1", "static 1 1", "paged 1 1", "none 3 0", "concat 3 0",
                                 "static 3 0", "paged 3 0", "none 3 1", "concat 3 1", "static 3 1",
                                 "paged 3 1"));
  options.budget_seconds = 0;  // no run is that fast
  const auto cells = CellsByCache("llama_a.Q4_1", options);
  ASSERT_TRUE(cells.ok()) << cells.status();
  for (const auto& [name, cell] : *cells) EXPECT_EQ(cell.seconds.size(), 1u) << name;
}

}  // namespace
}  // namespace kvist::services
