// SmolLM2 and Gemma 3 against transformers' log probabilities (tests/golden/README.md has the
// tolerances).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/long_run.h"
#include "tests/support/model_files.h"
#include "tests/support/tiny_model.h"

namespace kvist::testing {
namespace {

using nlohmann::json;

struct Tolerances {
  double logprob;           // of the 20 likeliest tokens
  double doubt;             // greedy ids must agree where the margin is above
  double nll_short = 0.05;  // relative, below 90 tokens
  double nll_long = 0.02;
};

struct Case {
  std::string name;
  std::string_view model_file;
  std::string golden_file;
  std::string kernels;
  std::string weights;
  int64_t max_prompt_tokens;
  Tolerances tolerances;

  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};

constexpr Tolerances kSmolFloat{.logprob = 0.002, .doubt = 0.01};
constexpr Tolerances kGemmaFloat{.logprob = 0.003, .doubt = 0.05};
constexpr Tolerances kSmolNative{.logprob = 0.8, .doubt = 1.0};
constexpr Tolerances kGemmaNative{.logprob = 1.2, .doubt = 1.0};
constexpr int64_t kAll = 1 << 20;
constexpr int64_t kShort = 8;

// The scalar kernels take a second for three tokens: in a usual run they get the short prompts. On
// native weights that will do, for there they give the bits of the fast ones (product_test.cc).
int64_t MaxScalarTokens() { return IsLongRun() ? kAll : kShort; }

std::vector<Case> AllCases() {
  const int64_t few = MaxScalarTokens();
  const std::string smol = "logits_smollm2.jsonl";
  const std::string gemma = "logits_gemma3.jsonl";
  return {
      {"SmolLm2Float32", kSmolLm2File, smol, "auto", "float32", kAll, kSmolFloat},
      {"SmolLm2Native", kSmolLm2File, smol, "auto", "native", kAll, kSmolNative},
      {"SmolLm2Float32Scalar", kSmolLm2File, smol, "scalar", "float32", few, kSmolFloat},
      {"SmolLm2NativeScalar", kSmolLm2File, smol, "scalar", "native", kShort, kSmolNative},
      {"Gemma3Float32", kGemma3File, gemma, "auto", "float32", kAll, kGemmaFloat},
      {"Gemma3Native", kGemma3File, gemma, "auto", "native", kAll, kGemmaNative},
      {"Gemma3Float32Scalar", kGemma3File, gemma, "scalar", "float32", few, kGemmaFloat},
      {"Gemma3NativeScalar", kGemma3File, gemma, "scalar", "native", kShort, kGemmaNative},
  };
}

// ln p of every token, in double.
std::vector<double> LogProbabilities(const std::vector<float>& logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - most);
  std::vector<double> result;
  for (const float logit : logits) result.push_back(logit - most - std::log(sum));
  return result;
}

class ModelLogitsTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const auto path = FindModelFile(GetParam().model_file);
    ASSERT_TRUE(path.ok()) << path.status();
    worker::CpuBackendOptions options;
    options.kernels = GetParam().kernels;
    options.weights = GetParam().weights;
    options.threads = 1;  // tests run beside each other
    options.context_tokens = 1024;
    options.blocks_per_pool = 64;
    options.max_batch_tokens = 64;
    options.max_logit_rows = 64;
    options.kv_formats = {GetParam().weights == "float32" ? worker::KvFormat::kF32
                                                          : worker::KvFormat::kF16};
    backend_ = OpenModel(*path, options);
    blocks_ = std::make_unique<BlockSource>(*backend_, 1);
    const auto lines = ReadGoldenLines(GetParam().golden_file);
    ASSERT_TRUE(lines.ok()) << lines.status();
    for (const std::string& line : *lines) {
      json prompt = json::parse(line);
      if (prompt["n"] <= GetParam().max_prompt_tokens) prompts_.push_back(std::move(prompt));
    }
    ASSERT_FALSE(prompts_.empty());
  }

  // Appends all ids in chunks; log probabilities after each.
  std::vector<std::vector<double>> Feed(TestSequence& sequence,
                                        const std::vector<int32_t>& ids) const {
    std::vector<std::vector<double>> result;
    for (size_t begin = 0; begin < ids.size(); begin += 64) {
      const size_t count = std::min<size_t>(64, ids.size() - begin);
      for (const auto& row :
           sequence.Run({ids.data() + begin, count}, static_cast<int64_t>(count))) {
        result.push_back(LogProbabilities(row));
      }
    }
    return result;
  }

  void ExpectPrompt(const json& prompt) const {
    const Tolerances& tolerances = GetParam().tolerances;
    const auto ids = prompt["ids"].get<std::vector<int32_t>>();
    TestSequence sequence(*backend_, *blocks_, backend_->pools().front().format);
    std::vector<std::vector<double>> logprobs = Feed(sequence, ids);
    double nll = 0;
    for (size_t i = 1; i < ids.size(); ++i) {
      nll -= logprobs[i - 1][static_cast<size_t>(ids[i])] / static_cast<double>(ids.size() - 1);
    }
    const double expected_nll = prompt["prompt_nll"].get<double>();
    const double share = ids.size() >= 90 ? tolerances.nll_long : tolerances.nll_short;
    EXPECT_NEAR(nll, expected_nll, share * expected_nll);
    for (const json& entry : prompt["top20"]) {
      const size_t id = entry[0].get<size_t>();
      EXPECT_NEAR(logprobs.back()[id], entry[1].get<double>(), tolerances.logprob)
          << "token " << id;
    }
    ExpectGreedy(prompt, sequence, logprobs.back());
  }

  // Fed the reference's own choices, so that one difference does not hide what follows.
  void ExpectGreedy(const json& prompt, TestSequence& sequence,
                    std::vector<double> logprobs) const {
    const auto greedy = prompt["greedy_ids"].get<std::vector<int32_t>>();
    for (size_t step = 0; step < greedy.size(); ++step) {
      const auto best = std::max_element(logprobs.begin(), logprobs.end()) - logprobs.begin();
      if (prompt["greedy_margin"][step].get<double>() > GetParam().tolerances.doubt) {
        EXPECT_EQ(best, greedy[step]) << "step " << step;
      }
      if (step + 1 < greedy.size())
        logprobs = LogProbabilities(sequence.Run({&greedy[step], 1}, 1)[0]);
    }
  }

  std::unique_ptr<worker::Backend> backend_;
  std::unique_ptr<BlockSource> blocks_;
  std::vector<json> prompts_;
};

TEST_P(ModelLogitsTest, PromptsAndForcedGreedyTokensAgreeWithTheReference) {
  for (const json& prompt : prompts_) {
    SCOPED_TRACE(prompt["name"].get<std::string>());
    ExpectPrompt(prompt);
  }
}

INSTANTIATE_TEST_SUITE_P(All, ModelLogitsTest, ::testing::ValuesIn(AllCases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace kvist::testing
