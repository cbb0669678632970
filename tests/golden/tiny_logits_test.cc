// Tiny models of every architecture and weight type against transformers' logits
// (tests/golden/README.md).
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
#include "tests/support/model_files.h"
#include "tests/support/tiny_model.h"
#include "worker/kernels/kernel_table.h"

namespace kvist::testing {
namespace {

using nlohmann::json;
using worker::KvFormat;

constexpr double kFloat32Bound = 1e-3;
constexpr double kQuantizedBound = 0.6;
constexpr double kBf16Bound = 0.25;

struct Case {
  std::string model;    // file of the references
  std::string variant;  // weight type

  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.model << "." << c.variant; }
};

json ReadReferences(const std::string& model) {
  std::ifstream file(GoldenPath("tiny/" + model + ".json"));
  return json::parse(file);
}

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const char* model :
       {"llama_a", "llama_k", "qwen2_a", "qwen2_tied", "qwen3_a", "qwen3_k", "gemma3_a"}) {
    const json references = ReadReferences(model);
    for (const auto& [variant, unused] : references["variants"].items()) {
      cases.push_back({model, variant});
    }
  }
  return cases;
}

double MaxDifference(const std::vector<float>& logits, const std::vector<double>& expected) {
  EXPECT_EQ(logits.size(), expected.size());
  double worst = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double difference = std::abs(logits[i] - expected[i]);
    if (!(difference <= worst)) worst = difference;  // NaN counts
  }
  return worst;
}

class TinyLogitsTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const json references = ReadReferences(GetParam().model);
    prompts_ = references["prompts"].get<std::vector<std::vector<int32_t>>>();
    const json& variant = references["variants"][GetParam().variant];
    logits_ = variant["logits"].get<std::vector<std::vector<double>>>();
    greedy_ = variant["greedy_of_prompt_1"]["ids"].get<std::vector<int32_t>>();
    margins_ = variant["greedy_of_prompt_1"]["margin"].get<std::vector<double>>();
    options_ = TinyOptions();
    options_.kv_formats = {KvFormat::kF32};
  }

  std::unique_ptr<worker::Backend> Open() const {
    return OpenTinyModel(GetParam().model + "." + GetParam().variant, options_);
  }

  // Logits after each prompt, fed `chunk` tokens at a time, differ by at most `bound`.
  void ExpectPromptsWithin(worker::Backend& backend, int64_t chunk, double bound) const {
    BlockSource blocks(backend);
    for (size_t i = 0; i < prompts_.size(); ++i) {
      TestSequence sequence(backend, blocks, options_.kv_formats.front());
      const int64_t size = static_cast<int64_t>(prompts_[i].size());
      std::vector<std::vector<float>> rows;
      for (int64_t begin = 0; begin < size; begin += chunk) {
        const size_t count = static_cast<size_t>(std::min(chunk, size - begin));
        rows = sequence.Run({prompts_[i].data() + begin, count}, 1);
      }
      ASSERT_EQ(rows.size(), 1u);
      EXPECT_LE(MaxDifference(rows[0], logits_[i]), bound)
          << "prompt " << i << ", chunks of " << chunk;
    }
  }

  // Teacher-forced greedy ids agree where the margin leaves no doubt.
  void ExpectGreedy(worker::Backend& backend, double doubt) const {
    BlockSource blocks(backend);
    TestSequence sequence(backend, blocks, options_.kv_formats.front());
    std::vector<std::vector<float>> rows = sequence.Run(prompts_[1], 1);
    for (size_t step = 0; step < greedy_.size(); ++step) {
      const auto best = std::max_element(rows[0].begin(), rows[0].end()) - rows[0].begin();
      if (margins_[step] > doubt) {
        EXPECT_EQ(best, greedy_[step]) << "step " << step;
      }
      rows = sequence.Run({&greedy_[step], 1}, 1);
    }
  }

  std::vector<std::vector<int32_t>> prompts_;
  std::vector<std::vector<double>> logits_;
  std::vector<int32_t> greedy_;
  std::vector<double> margins_;
  worker::CpuBackendOptions options_;
};

TEST_P(TinyLogitsTest, Float32WeightsGiveTheReferencesLogitsWhateverTheChunks) {
  options_.weights = "float32";
  const auto backend = Open();
  for (const int64_t chunk : {1000, 1, 7, 16}) ExpectPromptsWithin(*backend, chunk, kFloat32Bound);
  ExpectGreedy(*backend, 2 * kFloat32Bound);
}

TEST_P(TinyLogitsTest, NativeWeightsStayWithinTheBoundOfEightBitActivationsOnAllKernels) {
  const bool floats =
      GetParam().variant == "F32" || GetParam().variant == "F16" || GetParam().variant == "BF16";
  for (const worker::KernelTable* kernels : worker::AvailableKernels()) {
    SCOPED_TRACE(std::string(kernels->name));
    options_.kernels = std::string(kernels->name);
    const auto backend = Open();
    // Stored floats are exact and so are float activations: the tight bound holds for them too.
    const double bound = floats ? kFloat32Bound : kQuantizedBound;
    for (const int64_t chunk : {1000, 1, 7}) ExpectPromptsWithin(*backend, chunk, bound);
    ExpectGreedy(*backend, 2 * bound);
  }
}

TEST_P(TinyLogitsTest, HalfPrecisionPagesStayWithinTheirBounds) {
  options_.weights = "float32";
  options_.kv_formats = {KvFormat::kF16};
  ExpectPromptsWithin(*Open(), 7, 0.03);
  options_.kv_formats = {KvFormat::kBF16};
  ExpectPromptsWithin(*Open(), 7, kBf16Bound);
}

INSTANTIATE_TEST_SUITE_P(All, TinyLogitsTest, ::testing::ValuesIn(AllCases()),
                         [](const auto& test) {
                           return test.param.model + "_" + test.param.variant;
                         });

}  // namespace
}  // namespace kvist::testing
