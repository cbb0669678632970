#include "worker/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/sampling/exponential.h"
#include "worker/sampling/philox.h"

namespace kvist::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The same rules, written to be obviously right: everything is sorted, the library's exp, one list.
int32_t NaiveSample(const std::vector<float>& logits, const SamplingOptions& options,
                    const TokenCounts& counts, const std::vector<int32_t>& masked,
                    int64_t position) {
  std::vector<float> x = logits;
  for (const auto& [id, count] : counts.map()) {
    float& value = x[static_cast<size_t>(id)];
    value = value > 0 ? value / options.repetition_penalty : value * options.repetition_penalty;
    if (count > 0) {
      value -= options.presence_penalty + options.frequency_penalty * static_cast<float>(count);
    }
  }
  for (const int32_t id : masked) x[static_cast<size_t>(id)] = -kInfinity;
  std::vector<int32_t> order(x.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  auto value = [&x](int32_t id) { return x[static_cast<size_t>(id)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return value(a) > value(b); });
  if (options.temperature == 0.0f) return order[0];
  if (options.top_k > 0) order.resize(static_cast<size_t>(options.top_k));
  const float maximum = value(order[0]);
  auto weight = [&](int32_t id) {
    return std::exp((static_cast<double>(value(id)) - maximum) /
                    static_cast<double>(options.temperature));
  };
  double total = 0;
  for (const int32_t id : order) total += weight(id);
  if (options.top_p < 1.0f) {
    double sum = 0;
    size_t keep = 0;
    while (keep < order.size() && sum < total * options.top_p) sum += weight(order[keep++]);
    order.resize(keep);
  }
  std::erase_if(order, [&](int32_t id) { return weight(id) < options.min_p; });
  std::sort(order.begin(), order.end());
  total = 0;
  for (const int32_t id : order) total += weight(id);
  const double target = total * UniformAt({options.seed, options.sample_index, position});
  double sum = 0;
  for (const int32_t id : order) {
    sum += weight(id);
    if (sum > target) return id;
  }
  return order.back();
}

// Random logits: smooth, coarse (many ties), with -infinity, far apart or all equal.
std::vector<float> RandomLogits(std::mt19937_64& random, int64_t vocab) {
  const int kind = static_cast<int>(random() % 5);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> logits;
  for (int64_t i = 0; i < vocab; ++i) {
    float x = normal(random);
    if (kind == 1) x = std::round(x);
    if (kind == 2 && random() % 3 == 0) x = -kInfinity;
    if (kind == 3) x *= 100.0f;
    if (kind == 4) x = random() % 4 == 0 ? -0.0f : 0.0f;
    logits.push_back(x);
  }
  logits[random() % logits.size()] = 1.0f;
  return logits;
}

SamplingOptions RandomOptions(std::mt19937_64& random, int64_t vocab) {
  std::uniform_real_distribution<float> unit(0.0f, 1.0f);
  auto sometimes = [&random] { return random() % 2 == 0; };
  SamplingOptions options;
  options.temperature = random() % 6 == 0 ? 0.0f : 0.05f + 2.0f * unit(random);
  if (sometimes())
    options.top_k = static_cast<int32_t>(1 + random() % static_cast<uint64_t>(vocab));
  if (sometimes()) options.top_k = std::min(options.top_k, 20);
  if (sometimes()) options.top_p = 0.02f + 0.98f * unit(random);
  if (sometimes()) options.min_p = 0.3f * unit(random);
  if (sometimes()) options.repetition_penalty = 0.5f + unit(random);
  if (sometimes()) options.presence_penalty = 2.0f * unit(random) - 1.0f;
  if (sometimes()) options.frequency_penalty = 2.0f * unit(random) - 1.0f;
  options.seed = random();
  options.sample_index = static_cast<uint32_t>(random());
  return options;
}

int32_t SampleOne(Sampler& sampler, const std::vector<float>& logits,
                  const SamplingOptions& options, int64_t position = 0) {
  SampleOutput out;
  const TokenCounts counts;
  const absl::Status status = sampler.Sample(
      {.logits = logits, .options = options, .counts = &counts, .position = position}, &out);
  EXPECT_TRUE(status.ok()) << status;
  return out.id;
}

TEST(PhiloxTest, GivesTheVectorsOfItsAuthors) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  const uint32_t ones = 0xffffffffu;
  EXPECT_THAT(Philox4x32({ones, ones, ones, ones}, {ones, ones}),
              ElementsAre(0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu));
  EXPECT_THAT(
      Philox4x32({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {0xa4093822u, 0x299f31d0u}),
      ElementsAre(0xd16cfe09u, 0x94fdcceb, 0x5001e420u, 0x24126ea1u));
}

TEST(PhiloxTest, EveryPartOfThePlaceMatters) {
  const RandomPlace place{.seed = 7, .sample_index = 1, .position = 9};
  const double u = UniformAt(place);
  EXPECT_EQ(u, UniformAt(place));
  EXPECT_NE(u, UniformAt({.seed = 7 + (uint64_t{1} << 32), .sample_index = 1, .position = 9}));
  EXPECT_NE(u, UniformAt({.seed = 7, .sample_index = 2, .position = 9}));
  EXPECT_NE(u, UniformAt({.seed = 7, .sample_index = 1, .position = 10}));
  for (int64_t p = 0; p < 1000; ++p) {
    const double v = UniformAt({.seed = 1, .position = p});
    EXPECT_GE(v, 0.0);
    EXPECT_LT(v, 1.0);
  }
}

TEST(ExponentialTest, IsWithinTwoUlpOfTheLibrarys) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> exponent(-699.0, 0.0);
  for (int i = 0; i < 100000; ++i) {
    const double x = i % 2 == 0 ? exponent(random) : exponent(random) / 500.0;
    const double expected = std::exp(x);
    EXPECT_NEAR(ExpOfNonPositive(x), expected, 2.3e-16 * 2 * expected) << x;
  }
  EXPECT_EQ(ExpOfNonPositive(0.0), 1.0);
  EXPECT_EQ(ExpOfNonPositive(-kInfinity), 0.0);
  EXPECT_EQ(ExpOfNonPositive(-701.0), 0.0);
}

TEST(SamplerTest, ChoosesAsASamplerThatSortsEverything) {
  std::mt19937_64 random(20240607);
  for (const int64_t vocab : {1, 2, 17, 255, 256, 257, 1000, 5000}) {
    Sampler sampler(vocab);
    for (int round = 0; round < 400; ++round) {
      const std::vector<float> logits = RandomLogits(random, vocab);
      const SamplingOptions options = RandomOptions(random, vocab);
      ASSERT_TRUE(Validate(options, vocab).ok());
      TokenCounts counts;
      for (uint64_t n = random() % 20; n > 0; --n) {
        const int32_t id = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab));
        if (random() % 2 == 0)
          counts.AddPrompt(std::vector<int32_t>{id});
        else
          counts.AddOutput(id);
      }
      std::vector<int32_t> masked;
      if (vocab > 2 && random() % 2 == 0) masked = {static_cast<int32_t>(random() % 2)};
      const int64_t position = static_cast<int64_t>(random() % 100000);
      SampleOutput out;
      const absl::Status status = sampler.Sample({.logits = logits,
                                                  .options = options,
                                                  .counts = &counts,
                                                  .masked_ids = masked,
                                                  .position = position},
                                                 &out);
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_EQ(out.id, NaiveSample(logits, options, counts, masked, position))
          << "vocabulary " << vocab << " round " << round << " temperature " << options.temperature
          << " top-k " << options.top_k << " top-p " << options.top_p << " min-p " << options.min_p;
    }
  }
}

TEST(SamplerTest, FrequenciesFollowTheProbabilities) {
  // Chi-square with 7 degrees of freedom: above 24.3 once in a thousand seeds; the seed is fixed.
  const std::vector<float> logits = {0.0f, 1.0f, 2.0f, -1.0f, 0.5f, 0.5f, -3.0f, 1.5f};
  constexpr double kTemperature = 0.8;
  constexpr int kDraws = 200000;
  Sampler sampler(8);
  std::vector<double> expected;
  double total = 0;
  for (const float x : logits) {
    expected.push_back(std::exp(x / kTemperature));
    total += expected.back();
  }
  std::vector<int> drawn(8);
  for (int i = 0; i < kDraws; ++i) {
    ++drawn[static_cast<size_t>(SampleOne(sampler, logits, {.temperature = 0.8f, .seed = 11}, i))];
  }
  double chi_square = 0;
  for (size_t i = 0; i < 8; ++i) {
    const double mean = kDraws * expected[i] / total;
    chi_square += (drawn[i] - mean) * (drawn[i] - mean) / mean;
  }
  EXPECT_LT(chi_square, 24.3);
  EXPECT_GT(chi_square, 0.6);  // below that once in a thousand: too even to be random
}

TEST(SamplerTest, GreedyTakesTheLowestOfEqualIds) {
  Sampler sampler(600);
  std::vector<float> logits(600, -1.0f);
  logits[300] = logits[299] = logits[590] = 2.0f;
  EXPECT_EQ(SampleOne(sampler, logits, {}), 299);
}

TEST(SamplerTest, TopKOfEqualLogitsKeepsTheLowestIds) {
  Sampler sampler(1000);
  const std::vector<float> logits(1000, 0.25f);
  for (int position = 0; position < 200; ++position) {
    EXPECT_LT(SampleOne(sampler, logits, {.temperature = 1.0f, .top_k = 3}, position), 3);
  }
}

TEST(SamplerTest, ATinyTemperatureIsGreedyAndAHugeOneIsFlat) {
  Sampler sampler(4);
  const std::vector<float> logits = {1.0f, 1.001f, 0.5f, -4.0f};
  std::vector<int> drawn(4);
  for (int position = 0; position < 4000; ++position) {
    EXPECT_EQ(SampleOne(sampler, logits, {.temperature = 1e-30f}, position), 1);
    ++drawn[static_cast<size_t>(SampleOne(sampler, logits, {.temperature = 100.0f}, position))];
  }
  for (const int n : drawn) EXPECT_GT(n, 850);
}

TEST(SamplerTest, LogprobsAreOfTheLogitsAsGiven) {
  Sampler sampler(5);
  const std::vector<float> logits = {1.0f, 3.0f, 3.0f, -kInfinity, 0.0f};
  TokenCounts counts;
  counts.AddOutput(1);
  SampleOutput out;
  const SamplingOptions options{.presence_penalty = 2.0f, .logprobs = 3};
  ASSERT_TRUE(sampler.Sample({.logits = logits, .options = options, .counts = &counts}, &out).ok());
  EXPECT_EQ(out.id, 2);
  const double log_total = std::log(2 * std::exp(3.0) + std::exp(1.0) + 1.0);
  EXPECT_FLOAT_EQ(out.logprob, static_cast<float>(3.0 - log_total));
  ASSERT_EQ(out.top_logprobs.size(), 3u);
  EXPECT_EQ(out.top_logprobs[0].first, 1);
  EXPECT_EQ(out.top_logprobs[1].first, 2);
  EXPECT_EQ(out.top_logprobs[2].first, 0);
  EXPECT_FLOAT_EQ(out.top_logprobs[2].second, static_cast<float>(1.0 - log_total));
}

TEST(SamplerTest, ZeroLogprobsGivesTheChosenOnesAlone) {
  Sampler sampler(2);
  SampleOutput out;
  const std::vector<float> logits = {0.0f, 0.0f};
  const SamplingOptions options{.logprobs = 0};
  ASSERT_TRUE(sampler.Sample({.logits = logits, .options = options}, &out).ok());
  EXPECT_FLOAT_EQ(out.logprob, std::log(0.5f));
  EXPECT_TRUE(out.top_logprobs.empty());
}

TEST(SamplerTest, WhatIsNoNumberIsAnError) {
  Sampler sampler(300);
  SampleOutput out;
  const SamplingOptions greedy;
  for (const float bad : {kNan, kInfinity}) {
    for (const size_t place : {size_t{0}, size_t{255}, size_t{299}}) {
      std::vector<float> logits(300, 1.0f);
      logits[place] = bad;
      EXPECT_EQ(sampler.Sample({.logits = logits, .options = greedy}, &out).code(),
                absl::StatusCode::kInternal);
    }
  }
}

TEST(SamplerTest, NothingLeftToChooseIsAnError) {
  Sampler sampler(2);
  SampleOutput out;
  const std::vector<float> logits = {1.0f, 2.0f};
  const std::vector<int32_t> all = {0, 1};
  const SamplingOptions greedy;
  EXPECT_EQ(sampler.Sample({.logits = logits, .options = greedy, .masked_ids = all}, &out).code(),
            absl::StatusCode::kInternal);
}

TEST(SamplerTest, ATinyRepetitionPenaltyStaysFinite) {
  Sampler sampler(3);
  TokenCounts counts;
  counts.AddOutput(1);
  SampleOutput out;
  const std::vector<float> logits = {1.0f, 20.0f, 3.0f};
  const SamplingOptions options{.temperature = 1.0f, .repetition_penalty = 1e-38f};
  ASSERT_TRUE(sampler.Sample({.logits = logits, .options = options, .counts = &counts}, &out).ok());
  EXPECT_EQ(out.id, 1);
}

struct BadOption {
  std::string field;
  SamplingOptions options;
};

TEST(SamplingOptionsTest, BadValuesAreRefusedByName) {
  const std::vector<BadOption> bad = {
      {"temperature", {.temperature = kNan}},
      {"temperature", {.temperature = -0.1f}},
      {"temperature", {.temperature = 100.1f}},
      {"temperature", {.temperature = kInfinity}},
      {"top_k", {.top_k = -1}},
      {"top_k", {.top_k = 11}},
      {"top_p", {.top_p = 0.0f}},
      {"top_p", {.top_p = 1.01f}},
      {"top_p", {.top_p = kNan}},
      {"min_p", {.min_p = -0.01f}},
      {"min_p", {.min_p = kNan}},
      {"repetition_penalty", {.repetition_penalty = 0.0f}},
      {"repetition_penalty", {.repetition_penalty = kNan}},
      {"presence_penalty", {.presence_penalty = 2.01f}},
      {"frequency_penalty", {.frequency_penalty = -kInfinity}},
      {"logprobs", {.logprobs = 21}},
      {"logprobs", {.logprobs = -2}},
  };
  for (const BadOption& b : bad) {
    const absl::Status status = Validate(b.options, 10);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << b.field;
    EXPECT_EQ(DetailsOf(status).field, b.field);
  }
  EXPECT_TRUE(Validate(SamplingOptions{.temperature = 100.0f,
                                       .top_k = 10,
                                       .top_p = 1.0f,
                                       .min_p = 1.0f,
                                       .repetition_penalty = 100.0f,
                                       .presence_penalty = 2.0f,
                                       .frequency_penalty = -2.0f,
                                       .logprobs = 20},
                       10)
                  .ok());
}

TEST(StopOptionsTest, LimitsHoldAndOneBeyondIsRefused) {
  StopOptions stop;
  EXPECT_TRUE(Validate(stop, 10).ok());
  stop.max_new_tokens = 0;
  EXPECT_EQ(DetailsOf(Validate(stop, 10)).field, "max_new_tokens");
  stop.max_new_tokens = std::numeric_limits<int64_t>::max();
  EXPECT_TRUE(Validate(stop, 10).ok());
  stop.min_new_tokens = -1;
  EXPECT_EQ(DetailsOf(Validate(stop, 10)).field, "min_new_tokens");
  stop.min_new_tokens = 0;
  stop.stop_ids = {0, 9};
  EXPECT_TRUE(Validate(stop, 10).ok());
  stop.stop_ids = {10};
  EXPECT_EQ(DetailsOf(Validate(stop, 10)).field, "stop_ids");
  stop.stop_ids = {-1};
  EXPECT_EQ(DetailsOf(Validate(stop, 10)).field, "stop_ids");
  stop.stop_ids.assign(kMaxStopIds, 1);
  EXPECT_TRUE(Validate(stop, 10).ok());
  stop.stop_ids.assign(kMaxStopIds + 1, 1);
  EXPECT_EQ(DetailsOf(Validate(stop, 10)).field, "stop_ids");
}

}  // namespace
}  // namespace kvist::worker
