#include "worker/backend/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache_manager/limits.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/gguf_builder.h"
#include "tests/support/model_files.h"
#include "tests/support/tiny_model.h"
#include "tests/worker/model/tiny_files.h"

namespace kvist::testing {
namespace {

using ::testing::HasSubstr;
using worker::Backend;
using worker::Batch;
using worker::CpuBackendOptions;
using worker::KvFormat;

absl::Status CreateStatus(const CpuBackendOptions& options) {
  const auto file = gguf::File::Open(GoldenPath("tiny/llama_a.Q4_1.gguf"));
  EXPECT_TRUE(file.ok()) << file.status();
  return worker::CreateCpuBackend(**file, options).status();
}

TEST(CreateCpuBackendTest, WrongOptionsAreInvalidArgumentsThatNameTheField) {
  const std::vector<std::pair<std::string, std::function<void(CpuBackendOptions&)>>> cases = {
      {"threads", [](auto& o) { o.threads = -1; }},
      {"threads", [](auto& o) { o.threads = 257; }},
      {"avx9", [](auto& o) { o.kernels = "avx9"; }},
      {"weights", [](auto& o) { o.weights = "float16"; }},
      {"context_tokens", [](auto& o) { o.context_tokens = -1; }},
      {"context_tokens", [](auto& o) { o.context_tokens = 257; }},  // the model's limit is 256
      {"block_tokens", [](auto& o) { o.block_tokens = 8; }},
      {"kv_formats", [](auto& o) { o.kv_formats = {}; }},
      {"max_batch_tokens", [](auto& o) { o.max_batch_tokens = 0; }},
      {"max_logit_rows", [](auto& o) { o.max_logit_rows = 0; }},
      {"kv_bytes", [](auto& o) { o.blocks_per_pool = 0, o.kv_bytes = 1000; }},
      {"q4 needs heads of a multiple of 32, this model's have 16",
       [](auto& o) {
         o.kv_formats = {KvFormat::kF16, KvFormat::kQ4};
       }},
      {"q4", [](auto& o) { o.kv_formats = {KvFormat::kQ4}, o.blocks_per_pool = 0; }},
  };
  for (const auto& [field, change] : cases) {
    CpuBackendOptions options = TinyOptions();
    change(options);
    const absl::Status status = CreateStatus(options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_THAT(std::string(status.message()), HasSubstr(field));
  }
}

TEST(CpuBackendTest, RowsBehindTheLastTokenAreNeitherGivenNorTaken) {
  for (const bool tied : {false, true}) {
    TinyFile padded("llama");
    padded.tokens.assign(37, "t");  // of 40 rows
    if (tied) padded.tensors.erase("output.weight");
    const std::string bytes = padded.Build();
    const auto file = gguf::File::Parse(AsBytes(bytes));
    ASSERT_TRUE(file.ok()) << file.status();
    CpuBackendOptions options = TinyOptions();
    options.kv_formats = {KvFormat::kF16};
    const auto backend = worker::CreateCpuBackend(**file, options);
    ASSERT_TRUE(backend.ok()) << backend.status();
    EXPECT_EQ((*backend)->model().vocab, 37);
    const std::vector<int32_t> blocks = {0};
    std::vector<int32_t> tokens = {0, 36};
    Batch batch;
    batch.slices.push_back({.tokens = tokens, .block_tables = {blocks}});
    const auto logits = (*backend)->Run(batch);
    ASSERT_TRUE(logits.ok()) << logits.status();
    EXPECT_EQ(logits->rows, 2);
    EXPECT_EQ(logits->vocab, 37);
    EXPECT_GE(logits->stride, 40);
    tokens[1] = 37;
    EXPECT_FALSE((*backend)->Run(batch).ok());
  }
}

TEST(CpuBackendTest, TellsTheFilesSamplingDefaultsAndRefusesBadOnes) {
  TinyFile tiny("llama");
  tiny.numbers = {{"general.sampling.temp", 0.25f}, {"general.sampling.min_p", 0.1f}};
  const auto create = [&] {
    const std::string bytes = tiny.Build();
    const auto file = gguf::File::Parse(AsBytes(bytes));
    EXPECT_TRUE(file.ok()) << file.status();
    return worker::CreateCpuBackend(**file, TinyOptions());
  };
  const auto backend = create();
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->model().sampling_defaults,
            (worker::SamplingDefaults{.temperature = 0.25f, .min_p = 0.1f}));
  EXPECT_EQ((*backend)->model().vocab, 40);
  tiny.numbers["general.sampling.min_p"] = 1.5f;
  const absl::Status status = create().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("general.sampling.min_p"));
}

// Such a model would load and never serve: no message could carry its name.
TEST(CreateCpuBackendTest, ANameThatNoMessageCarriesIsRefused) {
  const auto create = [](const std::string& title) {
    TinyFile tiny("llama");
    tiny.title = title;
    const std::string bytes = tiny.Build();
    const auto file = gguf::File::Parse(AsBytes(bytes));
    EXPECT_TRUE(file.ok()) << file.status();
    return worker::CreateCpuBackend(**file, TinyOptions());
  };
  const std::string longest(cache_manager::kMaxNameBytes, 'n');
  for (const std::string& good : {std::string("mod\u00e8le"), longest}) {
    const auto backend = create(good);
    ASSERT_TRUE(backend.ok()) << backend.status();
    EXPECT_EQ((*backend)->model().name, good);
  }
  for (const std::string& bad : {std::string("mod\xe8le"), std::string("\xff"), longest + "n"}) {
    const absl::Status status = create(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("general.name"));
  }
}

TEST(CpuBackendTest, SaysWhatItHolds) {
  CpuBackendOptions options = TinyOptions();
  options.threads = 2;
  options.kv_formats = {KvFormat::kF32, KvFormat::kF16};
  options.context_tokens = 100;
  const auto backend = OpenTinyModel("gemma3_a.Q8_0", options);
  const worker::ModelFacts& model = backend->model();
  EXPECT_EQ(model.architecture, "gemma3");
  EXPECT_THAT(model.fingerprint, ::testing::MatchesRegex("[0-9a-f]{64}"));
  EXPECT_EQ(model.vocab, 300);
  EXPECT_EQ(model.context_tokens, 100);
  EXPECT_GT(model.parameters, model.vocab * 64);
  EXPECT_GT(model.weight_bytes, model.parameters);  // 8.5 bits each
  EXPECT_LT(model.weight_bytes, 2 * model.parameters);
  ASSERT_EQ(model.groups.size(), 2u);
  EXPECT_THAT(model.groups[0].layers, ::testing::ElementsAre(5));
  EXPECT_EQ(model.groups[0].window, 0);
  EXPECT_THAT(model.groups[1].layers, ::testing::ElementsAre(0, 1, 2, 3, 4, 6));
  EXPECT_EQ(model.groups[1].window, 16);
  ASSERT_EQ(backend->pools().size(), 4u);
  EXPECT_EQ(backend->pools()[1].format, KvFormat::kF32);
  EXPECT_EQ(backend->pools()[1].group, 1);
  EXPECT_EQ(backend->pools()[2].format, KvFormat::kF16);
  EXPECT_EQ(backend->description(), "cpu/scalar, 2 threads");
  EXPECT_THAT(backend->numerics_id(), HasSubstr("native"));
  options.weights = "float32";
  EXPECT_NE(OpenTinyModel("gemma3_a.Q8_0", options)->numerics_id(), backend->numerics_id());
}

TEST(CpuBackendTest, ModelWithoutANameIsCalledAsItsFile) {
  const std::string path = ::testing::TempDir() + "some.model.gguf";
  std::ofstream(path, std::ios::binary) << TinyFile("llama").Build();
  EXPECT_EQ(OpenModel(path, TinyOptions())->model().name, "some.model");
  std::filesystem::remove(path);
}

TEST(CpuBackendTest, LoadingReportsRisingBytesUpToAll) {
  for (const char* model : {"llama_a.Q4_1", "gemma3_a.Q8_0"}) {  // untied and tied
    CpuBackendOptions options = TinyOptions();
    std::vector<int64_t> done;
    int64_t bytes = 0;
    options.progress = [&](int64_t done_bytes, int64_t all_bytes) {
      done.push_back(done_bytes);
      bytes = all_bytes;
    };
    OpenTinyModel(model, options);
    ASSERT_GT(done.size(), 20u);
    EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
    EXPECT_EQ(done.back(), bytes);
  }
}

TEST(CpuBackendTest, WithoutABudgetThePoolsHoldAtLeastOneSequence) {
  CpuBackendOptions options = TinyOptions();
  options.blocks_per_pool = 0;
  const auto backend = OpenTinyModel("llama_a.Q4_1", options);
  EXPECT_GE(backend->pools()[0].num_blocks, 256 / 16);
}

// A batch of two good slices that single fields of are spoiled.
class CpuBackendBatchTest : public ::testing::Test {
 protected:
  CpuBackendBatchTest() {
    CpuBackendOptions options = TinyOptions();
    options.max_batch_tokens = 32;
    options.max_logit_rows = 4;
    options.blocks_per_pool = 8;
    options.kv_formats = {KvFormat::kF16, KvFormat::kF32};
    options.context_tokens = 64;
    backend_ = OpenTinyModel("gemma3_a.Q4_0", options);
  }

  Batch Good() {
    Batch batch;
    for (int i = 0; i < 2; ++i) {
      batch.slices.push_back(
          {.tokens = std::span<const int32_t>(tokens_).first(6),
           .first_position = 30,
           .kv_format = KvFormat::kF16,
           .block_tables = {tables_[static_cast<size_t>(i)], tables_[static_cast<size_t>(i)]},
           .logits_from = 4});
    }
    return batch;
  }

  std::vector<int32_t> tokens_ = std::vector<int32_t>(64, 7);
  std::vector<std::vector<int32_t>> tables_ = {{0, 1, 2}, {3, 4, 5}};
  std::unique_ptr<Backend> backend_;
};

TEST_F(CpuBackendBatchTest, ABatchAtItsLimitsRuns) {
  Batch batch = Good();
  batch.slices[0].tokens = std::span<const int32_t>(tokens_).first(18);
  batch.slices[0].logits_from = 16;
  batch.slices[1].tokens = std::span<const int32_t>(tokens_).first(14);
  batch.slices[1].logits_from = 12;
  batch.slices[1].first_position = 34;  // up to position 47, the end of its table
  const auto logits = backend_->Run(batch);
  ASSERT_TRUE(logits.ok()) << logits.status();
  EXPECT_EQ(logits->rows, 4);
  EXPECT_EQ(logits->vocab, 300);
}

TEST_F(CpuBackendBatchTest, ABatchWithoutWantedRowsGivesNone) {
  Batch batch = Good();
  for (auto& slice : batch.slices) slice.logits_from = 6;
  const auto logits = backend_->Run(batch);
  ASSERT_TRUE(logits.ok()) << logits.status();
  EXPECT_EQ(logits->rows, 0);
  EXPECT_EQ(backend_->Run(Batch{})->rows, 0);
}

TEST_F(CpuBackendBatchTest, BlocksBehindTheWindowNeedNotBeThere) {
  // First position 30, window 16: positions 15 and up are seen, so block 0 is, at its last token.
  tables_ = {{0, 1, 2}, {3, 4, 5}};
  std::vector<int32_t> given_up = {-1, 1, 2};
  Batch batch = Good();
  batch.slices[0].block_tables[1] = given_up;
  EXPECT_EQ(backend_->Run(batch).status().code(), absl::StatusCode::kInternal);
  batch.slices[0].first_position = 31;
  EXPECT_TRUE(backend_->Run(batch).ok());
  batch.slices[0].block_tables[0] = given_up;  // the full group sees all
  EXPECT_EQ(backend_->Run(batch).status().code(), absl::StatusCode::kInternal);
}

TEST_F(CpuBackendBatchTest, ASequencesOwnWindowAndSinksSayWhichBlocksMustBeThere) {
  const std::vector<int32_t> given_up = {-1, 1, 2};
  Batch batch = Good();
  worker::SequenceSlice& slice = batch.slices[0];
  slice.first_position = 40;  // sees 25 and up
  slice.block_tables = {given_up, given_up};
  EXPECT_EQ(backend_->Run(batch).status().code(), absl::StatusCode::kInternal);
  slice.attention = {.window_tokens = 16};
  EXPECT_TRUE(backend_->Run(batch).ok());
  slice.attention.sink_tokens = 1;
  EXPECT_EQ(backend_->Run(batch).status().code(), absl::StatusCode::kInternal);
  slice.block_tables[0] = tables_[0];  // the group with a window of its own has no sinks
  EXPECT_TRUE(backend_->Run(batch).ok());
}

TEST_F(CpuBackendBatchTest, WhatBreaksALimitIsInternalAndChangesNothing) {
  std::vector<int32_t> bad_token = {1, 2, 300};
  std::vector<int32_t> negative_token = {-1};
  std::vector<int32_t> short_table = {0, 1};
  std::vector<int32_t> high_block = {0, 1, 8};
  std::vector<int32_t> negative_block = {0, -1, 2};
  const std::vector<std::pair<std::string, std::function<void(Batch&)>>> cases = {
      {"no tokens", [](Batch& b) { b.slices[1].tokens = {}; }},
      {"token 300",
       [&](Batch& b) {
         b.slices[1].tokens = bad_token;
         b.slices[1].logits_from = 3;
       }},
      {"token -1",
       [&](Batch& b) {
         b.slices[1].tokens = negative_token;
         b.slices[1].logits_from = 0;
       }},
      {"position", [](Batch& b) { b.slices[1].first_position = -1; }},
      {"context", [](Batch& b) { b.slices[1].first_position = 59; }},
      {"context",
       [](Batch& b) { b.slices[1].first_position = std::numeric_limits<int64_t>::max(); }},
      {"logits_from", [](Batch& b) { b.slices[1].logits_from = 7; }},
      {"logits_from", [](Batch& b) { b.slices[1].logits_from = -1; }},
      {"layer groups", [](Batch& b) { b.slices[1].block_tables.pop_back(); }},
      {"not served", [](Batch& b) { b.slices[1].kv_format = KvFormat::kBF16; }},
      {"window", [](Batch& b) { b.slices[1].attention.window_tokens = 15; }},
      {"window", [](Batch& b) { b.slices[1].attention.window_tokens = 65; }},
      {"sink", [](Batch& b) { b.slices[1].attention.sink_tokens = 1; }},
      {"block table has 2", [&](Batch& b) { b.slices[1].block_tables[1] = short_table; }},
      {"is 8", [&](Batch& b) { b.slices[1].block_tables[0] = high_block; }},
      {"is -1", [&](Batch& b) { b.slices[1].block_tables[1] = negative_block; }},
      {"33 tokens",
       [&](Batch& b) {
         b.slices[1].tokens = std::span<const int32_t>(tokens_).first(27);
         b.slices[1].first_position = 0;
         b.slices[1].logits_from = 27;
       }},
      {"5 rows of logits", [](Batch& b) { b.slices[1].logits_from = 3; }},
  };
  std::vector<std::byte> before(static_cast<size_t>(backend_->pools()[0].block_bytes));
  std::vector<std::byte> after(before.size());
  backend_->ReadBlock(0, 1, before);
  for (const auto& [problem, spoil] : cases) {
    Batch batch = Good();
    spoil(batch);
    const absl::Status status = backend_->Run(batch).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << problem;
    EXPECT_THAT(std::string(status.message()), HasSubstr(problem));
    backend_->ReadBlock(0, 1, after);
    EXPECT_EQ(before, after) << problem;
  }
  EXPECT_TRUE(backend_->Run(Good()).ok());
}

TEST_F(CpuBackendBatchTest, TwoSlicesThatWriteOneBlockAreRefusedByName) {
  std::vector<std::byte> before(static_cast<size_t>(backend_->pools()[1].block_bytes));
  std::vector<std::byte> after(before.size());
  // Positions 30 to 35 are written: block 1 at its last two tokens, block 2 at its first four.
  const std::vector<int32_t> first_shared = {3, 1, 5}, last_shared = {3, 4, 2};
  for (const size_t group : {0, 1}) {
    for (const auto& [table, problem] :
         {std::pair(first_shared, "slices 0 and 1: both write block 1 of pool "),
          std::pair(last_shared, "slices 0 and 1: both write block 2 of pool ")}) {
      Batch batch = Good();
      batch.slices[1].block_tables[group] = table;
      backend_->ReadBlock(1, 1, before);
      const absl::Status status = backend_->Run(batch).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat(problem, group)));
      backend_->ReadBlock(1, 1, after);
      EXPECT_EQ(before, after);
    }
  }
  // What one refused batch would have written, the next one may write.
  EXPECT_TRUE(backend_->Run(Good()).ok());
  EXPECT_TRUE(backend_->Run(Good()).ok());
}

TEST_F(CpuBackendBatchTest, OneSliceThatWritesABlockTwiceIsRefused) {
  const std::vector<int32_t> twice = {3, 4, 4};
  Batch batch = Good();
  batch.slices[1].block_tables[0] = twice;
  EXPECT_THAT(std::string(backend_->Run(batch).status().message()),
              HasSubstr("slice 1: writes block 4 of pool 0 twice"));
}

TEST_F(CpuBackendBatchTest, BlocksThatAreOnlyReadMayBeShared) {
  const std::vector<int32_t> shared_prefix = {0, 4, 5};
  Batch batch = Good();
  for (auto& table : batch.slices[1].block_tables) table = shared_prefix;
  EXPECT_TRUE(backend_->Run(batch).ok());
}

TEST_F(CpuBackendBatchTest, TheSameBlockOfAnotherFormatsPoolIsAnotherBlock) {
  Batch batch = Good();
  batch.slices[1].block_tables = batch.slices[0].block_tables;
  EXPECT_FALSE(backend_->Run(batch).ok());
  batch.slices[1].kv_format = KvFormat::kF32;
  EXPECT_TRUE(backend_->Run(batch).ok());
}

TEST(CpuBackendTest, RunLeavesTheCallersFloatingPointModeAlone) {
  const auto backend = OpenTinyModel("llama_a.Q4_1");
  BlockSource blocks(*backend);
  TestSequence sequence(*backend, blocks, KvFormat::kF16);
  const int32_t token = 5;
  sequence.Run({&token, 1}, 1);
  volatile float denormal = std::numeric_limits<float>::denorm_min();
  volatile float sum = denormal + denormal;
  EXPECT_GT(sum, 0.0f);
}

}  // namespace
}  // namespace kvist::testing
