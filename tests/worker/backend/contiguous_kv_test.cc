// KV outside of the pools, in the naive cache that grows by concatenation, gives the logits that
// blocks give.
#include <cstdint>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"
#include "worker/kv/concat_cache.h"

namespace kvist::testing {
namespace {

using worker::ConcatCache;
using worker::KvFormat;

std::vector<int32_t> Tokens(size_t count) {
  std::vector<int32_t> tokens;
  for (size_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>((i * 37 + 11) % 250));
  return tokens;
}

worker::Batch BatchOf(const ConcatCache& cache, KvFormat format, std::span<const int32_t> tokens) {
  worker::Batch batch;
  batch.slices.push_back({.tokens = tokens,
                          .first_position = cache.tokens() - static_cast<int64_t>(tokens.size()),
                          .kv_format = format,
                          .contiguous = &cache.kv(),
                          .logits_from = static_cast<int64_t>(tokens.size()) - 1});
  return batch;
}

TEST(ContiguousKvTest, EveryTokenHasTheLogitsOfBlocksBitForBit) {
  const std::vector<int32_t> tokens = Tokens(70);
  for (const char* model : {"llama_a.Q4_1", "gemma3_a.Q4_0", "qwen3_k.Q4_K"}) {
    for (const KvFormat format : {KvFormat::kF16, KvFormat::kF32}) {
      worker::CpuBackendOptions options = TinyOptions();
      options.threads = 2;
      options.kernels = "auto";
      options.kv_formats = {format};
      const auto backend = OpenTinyModel(model, options);
      BlockSource blocks(*backend, /*seed=*/1);
      TestSequence paged(*backend, blocks, format);
      ConcatCache cache(backend->model().groups, format);
      // A prompt, then one token at a time over the ends of pages.
      size_t done = 0;
      for (size_t count = 5; done + count <= tokens.size(); count = 1) {
        const auto next = std::span(tokens).subspan(done, count);
        done += count;
        const auto expected = paged.Run(next, 1);
        ASSERT_TRUE(cache.Append(static_cast<int64_t>(count)).ok());
        EXPECT_EQ(RunBatch(*backend, BatchOf(cache, format, next)), expected)
            << model << " at " << done;
      }
    }
  }
}

TEST(ContiguousKvTest, WhatDoesNotFitTheModelOrTheTokensIsAnInternalError) {
  const auto backend = OpenTinyModel("llama_a.Q4_1");
  const std::vector<int32_t> tokens = Tokens(17);
  ConcatCache cache(backend->model().groups, KvFormat::kF16);
  ASSERT_TRUE(cache.Append(17).ok());
  const auto status_of = [&](const worker::Batch& batch) { return backend->Run(batch).status(); };
  EXPECT_TRUE(status_of(BatchOf(cache, KvFormat::kF16, tokens)).ok());

  worker::ContiguousKv few_layers = cache.kv();
  few_layers.layers.pop_back();
  worker::Batch batch = BatchOf(cache, KvFormat::kF16, tokens);
  batch.slices[0].contiguous = &few_layers;
  EXPECT_THAT(std::string(status_of(batch).message()), ::testing::HasSubstr("layers"));

  worker::ContiguousKv few_pages = cache.kv();
  few_pages.pages = 1;
  batch.slices[0].contiguous = &few_pages;
  EXPECT_THAT(std::string(status_of(batch).message()), ::testing::HasSubstr("pages"));

  EXPECT_EQ(status_of(BatchOf(cache, KvFormat::kBF16, tokens)).code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace kvist::testing
