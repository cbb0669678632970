#include "worker/model/sampling_defaults.h"

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "common/gguf/gguf_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/gguf_builder.h"

namespace kvist::testing {
namespace {

using ::testing::HasSubstr;
using worker::SamplingDefaults;

constexpr int64_t kVocab = 40;

absl::StatusOr<SamplingDefaults> Read(const GgufBuilder& builder) {
  const std::string bytes = builder.Build();
  const auto file = gguf::File::Parse(AsBytes(bytes));
  if (!file.ok()) return file.status();
  return worker::ReadSamplingDefaults(**file, kVocab);
}

TEST(SamplingDefaultsTest, WhatTheFileDoesNotSayIsUnset) {
  EXPECT_EQ(Read(GgufBuilder()).value(), SamplingDefaults());
  GgufBuilder builder;
  builder.Add("general.sampling.top_p", GgufBuilder::kFloat32, 0.8f);
  EXPECT_EQ(Read(builder).value(), SamplingDefaults{.top_p = 0.8f});
}

TEST(SamplingDefaultsTest, TakesValuesUpToTheirLimits) {
  GgufBuilder least, most;
  least.Add("general.sampling.temp", GgufBuilder::kInt32, int32_t{0})
      .Add("general.sampling.top_k", GgufBuilder::kInt32, int32_t{0})
      .Add("general.sampling.min_p", GgufBuilder::kFloat32, 0.0f)
      .Add("general.sampling.top_p", GgufBuilder::kFloat32, 1e-6f);
  EXPECT_EQ(Read(least).value(), (SamplingDefaults{0.0f, 0, 1e-6f, 0.0f}));
  most.Add("general.sampling.temp", GgufBuilder::kFloat64, 100.0)
      .Add("general.sampling.top_k", GgufBuilder::kUint32, uint32_t{kVocab})
      .Add("general.sampling.min_p", GgufBuilder::kFloat32, 1.0f)
      .Add("general.sampling.top_p", GgufBuilder::kFloat32, 1.0f);
  EXPECT_EQ(Read(most).value(), (SamplingDefaults{100.0f, kVocab, 1.0f, 1.0f}));
}

TEST(SamplingDefaultsTest, WrongTypesAndRangesAreInvalidArgumentsThatNameTheKey) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinite = std::numeric_limits<float>::infinity();
  const auto number = [](const char* key, float value) {
    return std::pair(std::string(key), GgufBuilder().Add(key, GgufBuilder::kFloat32, value));
  };
  const auto count = [](const char* key, int64_t value) {
    return std::pair(std::string(key), GgufBuilder().Add(key, GgufBuilder::kInt64, value));
  };
  const char* const top_p = "general.sampling.top_p";
  std::vector<std::pair<std::string, GgufBuilder>> cases = {
      {top_p, GgufBuilder().Add(top_p, GgufBuilder::kFloat64, 1e-60)},
      number("general.sampling.temp", -0.1f),
      number("general.sampling.temp", 100.1f),
      number("general.sampling.temp", nan),
      number("general.sampling.temp", infinite),
      number("general.sampling.top_p", 0.0f),
      number("general.sampling.top_p", 1.1f),
      number("general.sampling.top_p", nan),
      number("general.sampling.min_p", -0.1f),
      number("general.sampling.min_p", 1.1f),
      number("general.sampling.min_p", nan),
      number("general.sampling.top_k", 5.0f),
      count("general.sampling.top_k", -1),
      count("general.sampling.top_k", kVocab + 1),
      count("general.sampling.top_k", std::numeric_limits<int64_t>::max()),
  };
  for (const char* key : {"general.sampling.temp", "general.sampling.top_k",
                          "general.sampling.top_p", "general.sampling.min_p"}) {
    cases.emplace_back(key, GgufBuilder().AddString(key, "0.5"));
    cases.emplace_back(key, GgufBuilder().AddArray<float>(key, GgufBuilder::kFloat32, {0.5f}));
    cases.emplace_back(key, GgufBuilder().Add(key, GgufBuilder::kBool, uint8_t{1}));
  }
  for (const auto& [key, builder] : cases) {
    const absl::Status status = Read(builder).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << key;
    EXPECT_THAT(std::string(status.message()), HasSubstr(key));
  }
}

}  // namespace
}  // namespace kvist::testing
