// A window with sinks on tiny models against transformers under the same mask
// (tests/golden/LOGITS.md): the backend's logits, and an engine's log probabilities from pools that
// hold the window and not the sequence.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/hash_reference.h"
#include "tests/support/model_files.h"
#include "tests/support/recording_sink.h"
#include "tests/support/simulated_clock.h"
#include "tests/support/tiny_model.h"
#include "worker/engine/engine_core.h"
#include "worker/kernels/kernel_table.h"

namespace kvist::testing {
namespace {

using cache_manager::AttentionSpan;
using nlohmann::json;
using worker::KvFormat;

constexpr double kFloat32Bound = 1e-3;  // LOGITS.md
constexpr double kF16Bound = 0.03;      // of pages in half precision
// The least that tells a wrong mask from a right one, whatever the pages.
constexpr double kApart = 5 * kF16Bound;

double MaxDifference(const std::vector<float>& logits, const std::vector<double>& expected) {
  EXPECT_EQ(logits.size(), expected.size());
  double worst = 0;
  for (size_t i = 0; i < std::min(logits.size(), expected.size()); ++i) {
    const double difference = std::abs(logits[i] - expected[i]);
    if (!(difference <= worst)) worst = difference;  // NaN counts
  }
  return worst;
}

// ln of the sum of e^x.
double LogSumExp(const std::vector<double>& logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const double logit : logits) sum += std::exp(logit - most);
  return most + std::log(sum);
}

class WindowLogitsTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    std::ifstream file(GoldenPath("tiny/windows.json"));
    const json all = json::parse(file);
    const json& reference = all[GetParam()];
    prompt_ = reference["prompt"].get<std::vector<int32_t>>();
    span_ = {.window_tokens = reference["window"], .sink_tokens = reference["sinks"]};
    rows_ = reference["rows"].get<std::vector<size_t>>();
    logits_ = reference["logits"].get<std::vector<std::vector<double>>>();
    others_ = reference["others"];
    ASSERT_EQ(rows_.back(), prompt_.size() - 1);
    options_ = TinyOptions();
    options_.kv_formats = {KvFormat::kF32};
  }

  std::unique_ptr<worker::Backend> Open() const {
    return OpenTinyModel(GetParam() + ".F32", options_);
  }

  // Logits of every position, the prompt fed `chunk` tokens at a time. Blocks that fell out of a
  // window are given back and written anew by what follows.
  std::vector<std::vector<float>> AllRows(worker::Backend& backend, const AttentionSpan& span,
                                          size_t chunk) const {
    BlockSource blocks(backend, /*seed=*/11);
    TestSequence sequence(backend, blocks, options_.kv_formats.front(), span);
    std::vector<std::vector<float>> all;
    for (size_t begin = 0; begin < prompt_.size(); begin += chunk) {
      const size_t count = std::min(chunk, prompt_.size() - begin);
      for (auto& row : sequence.Run({&prompt_[begin], count}, static_cast<int64_t>(count))) {
        all.push_back(std::move(row));
      }
    }
    return all;
  }

  void ExpectReference(worker::Backend& backend, size_t chunk, double bound) const {
    const auto got = AllRows(backend, span_, chunk);
    ASSERT_EQ(got.size(), prompt_.size());
    for (size_t i = 0; i < rows_.size(); ++i) {
      EXPECT_LE(MaxDifference(got[rows_[i]], logits_[i]), bound)
          << "position " << rows_[i] << ", chunks of " << chunk;
    }
    for (const auto& [name, other] : others_.items()) {
      EXPECT_GT(MaxDifference(got.back(), other["logits"].get<std::vector<double>>()), kApart)
          << name;
    }
  }

  std::vector<int32_t> prompt_;
  AttentionSpan span_;
  std::vector<size_t> rows_;                 // positions that there are logits of
  std::vector<std::vector<double>> logits_;  // by row
  json others_;                              // other masks, and the last row's logits
  worker::CpuBackendOptions options_;
};

TEST_P(WindowLogitsTest, LogitsAreThoseOfTheSameMaskInAnotherImplementation) {
  for (const worker::KernelTable* kernels : worker::AvailableKernels()) {
    SCOPED_TRACE(std::string(kernels->name));
    options_.kernels = std::string(kernels->name);
    options_.kv_formats = {KvFormat::kF32};
    const auto backend = Open();
    for (const size_t chunk : {1, 7, 16, 120}) ExpectReference(*backend, chunk, kFloat32Bound);
    options_.kv_formats = {KvFormat::kF16};
    ExpectReference(*Open(), 7, kF16Bound);
  }
}

// One token more or less of the window or of the sinks: as far from each other as the reference
// says, and each equal to the reference's own.
TEST_P(WindowLogitsTest, EverySpanHasTheLogitsOfItsOwnMask) {
  const auto backend = Open();
  int spans = 0;
  for (const auto& [name, other] : others_.items()) {
    EXPECT_GT(other["differs_by"].get<double>(), kApart) << name;
    if (!other.contains("window")) continue;
    ++spans;
    const AttentionSpan span{.window_tokens = other["window"], .sink_tokens = other["sinks"]};
    const auto expected = other["logits"].get<std::vector<double>>();
    EXPECT_LE(MaxDifference(AllRows(*backend, span, 7).back(), expected), kFloat32Bound) << name;
  }
  EXPECT_EQ(spans, 4);
}

// 120 tokens are 8 blocks; the pools have 5, for a chunk, the sinks and the window.
TEST_P(WindowLogitsTest, AnEngineGivesThemFromPoolsThatHoldTheWindowOnly) {
  const SimulatedClock clock;
  options_.blocks_per_pool = 5;
  options_.max_batch_tokens = 16;
  worker::EngineCore core({.max_running_sequences = 1, .max_step_tokens = 16}, Open(), &clock);
  worker::GenerateRequest request = worker::RequestOf("a", prompt_, 1);
  request.cache.attention = span_;
  request.sampling.logprobs = 20;
  const absl::Status status = worker::PrepareRequest(core.limits(), &request);
  ASSERT_TRUE(status.ok()) << status;
  auto sink = std::make_shared<worker::RecordingSink>();
  core.Add(std::move(request), sink, clock.Now());
  while (!core.idle()) ASSERT_TRUE(core.Step());
  ASSERT_EQ(sink->outputs.size(), 1u);
  const std::vector<double>& expected = logits_.back();
  const double normalizer = LogSumExp(expected);
  ASSERT_EQ(sink->outputs[0].top_logprobs.size(), 20u);
  for (const worker::TokenLogprob& top : sink->outputs[0].top_logprobs) {
    EXPECT_NEAR(top.logprob, expected[static_cast<size_t>(top.id)] - normalizer, 2 * kFloat32Bound)
        << top.id;
  }
  // It was the window that made it fit.
  worker::GenerateRequest whole = worker::RequestOf("b", prompt_, 1);
  EXPECT_FALSE(worker::PrepareRequest(core.limits(), &whole).ok());
}

INSTANTIATE_TEST_SUITE_P(Models, WindowLogitsTest, ::testing::Values("llama_a", "gemma3_a"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace kvist::testing
