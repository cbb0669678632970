#include "worker/model/config.h"

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "common/gguf/gguf_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/gguf_builder.h"
#include "tests/worker/model/tiny_files.h"
#include "worker/model/registry.h"

namespace kvist::testing {
namespace {

using ::testing::HasSubstr;
using worker::ModelConfig;

absl::StatusOr<ModelConfig> Read(const TinyFile& tiny) {
  const std::string bytes = tiny.Build();
  const auto file = gguf::File::Parse(AsBytes(bytes));
  if (!file.ok()) return file.status();
  return worker::ReadModelConfig(**file);
}

TEST(ReadModelConfigTest, FillsShapesAndDefaults) {
  const auto config = Read(TinyFile("llama"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, "llama");
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->kv_cols(), 32);
  EXPECT_EQ(config->query_heads_per_kv_head(), 2);
  EXPECT_EQ(config->vocab, 40);
  EXPECT_EQ(config->rope_pairs, 8);
  EXPECT_EQ(config->rope_style, worker::RopeStyle::kInterleaved);
  EXPECT_EQ(config->rope.base, 5000.0);
  EXPECT_EQ(config->attention_scale, 0.25f);
  EXPECT_EQ(config->embedding_scale, 1.0f);
  EXPECT_EQ(worker::LayerGroupsOf(*config).size(), 1u);
  EXPECT_EQ(Read(TinyFile("qwen2"))->rope_style, worker::RopeStyle::kHalves);
}

TEST(ReadModelConfigTest, TheVocabularyIsTheFilesTokensAndTheEmbeddingMayHaveMoreRows) {
  TinyFile tiny("llama");
  EXPECT_EQ(Read(tiny)->vocab, 40);  // of a file without a vocabulary
  for (const size_t tokens : {size_t{1}, size_t{37}, size_t{40}}) {
    tiny.tokens.assign(tokens, "t");
    const auto config = Read(tiny);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->vocab, static_cast<int64_t>(tokens));
    EXPECT_EQ(config->embedding_rows, 40);
  }
  tiny.tokens.assign(41, "t");
  const absl::Status status = Read(tiny).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("tokenizer.ggml.tokens"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("41"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("40"));
}

TEST(ReadModelConfigTest, LinearRopeScalingDividesPositions) {
  TinyFile tiny("llama");
  tiny.values["rope.scaling.type"] = std::string("linear");
  tiny.values["rope.scaling.factor"] = 4.0f;
  EXPECT_EQ(Read(tiny)->rope.position_scale, 4.0);
  tiny.values["rope.scaling.type"] = std::string("none");
  EXPECT_EQ(Read(tiny)->rope.position_scale, 1.0);
}

TEST(ReadModelConfigTest, Gemma3TakesPatternAndSecondBaseFromTheFileOrElseItsDefaults) {
  TinyFile tiny("gemma3");
  tiny.values["block_count"] = 13u;
  tiny.values["attention.sliding_window"] = 32u;
  auto config = Read(tiny);
  ASSERT_TRUE(config.ok()) << config.status();
  auto groups = worker::LayerGroupsOf(*config);
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_THAT(groups[0].layers, ::testing::ElementsAre(5, 11));
  EXPECT_EQ(groups[0].window, 0);
  EXPECT_EQ(groups[1].layers.size(), 11u);
  EXPECT_EQ(groups[1].window, 32);
  EXPECT_EQ(config->windowed_rope.base, 10000.0);
  EXPECT_EQ(config->rope.base, 5000.0);
  EXPECT_FLOAT_EQ(config->embedding_scale, 8.0f);

  tiny.values["attention.sliding_window_pattern"] = 3u;
  tiny.values["rope.freq_base_swa"] = 777.0f;
  tiny.values["rope.scaling.type"] = std::string("linear");
  tiny.values["rope.scaling.factor"] = 8.0f;
  config = Read(tiny);
  EXPECT_THAT(worker::LayerGroupsOf(*config)[0].layers, ::testing::ElementsAre(2, 5, 8, 11));
  EXPECT_EQ(config->windowed_rope.base, 777.0);
  EXPECT_EQ(config->windowed_rope.position_scale, 1.0);  // only full layers are stretched
  EXPECT_EQ(config->rope.position_scale, 8.0);
}

TEST(ReadModelConfigTest, WhatIsMissingOrWrongIsNamed) {
  using Change = std::function<void(TinyFile&)>;
  const std::vector<std::pair<std::string, Change>> cases = {
      {"general.architecture: \"mamba\" is not supported; known: llama, qwen2, qwen3, gemma3",
       [](TinyFile& f) { f.architecture = "mamba"; }},
      {"general.architecture: missing", [](TinyFile& f) { f.architecture = ""; }},
      {"llama.block_count: missing", [](TinyFile& f) { f.values.erase("block_count"); }},
      {"llama.block_count", [](TinyFile& f) { f.values["block_count"] = std::string("one"); }},
      {"llama.block_count: 0", [](TinyFile& f) { f.values["block_count"] = 0u; }},
      {"llama.block_count: 1025", [](TinyFile& f) { f.values["block_count"] = 1025u; }},
      {"llama.context_length: 0", [](TinyFile& f) { f.values["context_length"] = 0u; }},
      {"llama.embedding_length: 66", [](TinyFile& f) { f.values["embedding_length"] = 66u; }},
      {"llama.embedding_length: 80 is not a multiple of 32",
       [](TinyFile& f) {
         f.values["embedding_length"] = 80u;
         f.values["attention.key_length"] = 16u;
       }},
      {"llama.feed_forward_length: 95", [](TinyFile& f) { f.values["feed_forward_length"] = 95u; }},
      {"llama.attention.head_count: 4 is not a multiple of 3",
       [](TinyFile& f) { f.values["attention.head_count_kv"] = 3u; }},
      {"llama.attention.key_length: 12",
       [](TinyFile& f) { f.values["attention.key_length"] = 12u; }},
      {"llama.attention.value_length",
       [](TinyFile& f) { f.values["attention.value_length"] = 8u; }},
      {"llama.attention.layer_norm_rms_epsilon: missing",
       [](TinyFile& f) { f.values.erase("attention.layer_norm_rms_epsilon"); }},
      {"llama.attention.layer_norm_rms_epsilon",
       [](TinyFile& f) { f.values["attention.layer_norm_rms_epsilon"] = -1.0f; }},
      {"llama.rope.freq_base", [](TinyFile& f) { f.values["rope.freq_base"] = NAN; }},
      {"llama.rope.dimension_count", [](TinyFile& f) { f.values["rope.dimension_count"] = 18u; }},
      {"llama.rope.dimension_count", [](TinyFile& f) { f.values["rope.dimension_count"] = 7u; }},
      {"llama.rope.scaling.type: \"yarn\"",
       [](TinyFile& f) { f.values["rope.scaling.type"] = std::string("yarn"); }},
      {"llama.rope.scaling.factor: missing",
       [](TinyFile& f) { f.values["rope.scaling.type"] = std::string("linear"); }},
      {"llama.expert_count", [](TinyFile& f) { f.values["expert_count"] = 8u; }},
      {"token_embd.weight: missing", [](TinyFile& f) { f.tensors.erase("token_embd.weight"); }},
      {"gemma3.attention.sliding_window: missing", [](TinyFile& f) { f.architecture = "gemma3"; }},
      {"gemma3.final_logit_softcapping",
       [](TinyFile& f) {
         f.architecture = "gemma3";
         f.values["final_logit_softcapping"] = 30.0f;
       }},
  };
  for (const auto& [message, change] : cases) {
    TinyFile tiny("llama");
    change(tiny);
    const absl::Status status = Read(tiny).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status) || absl::IsUnimplemented(status)) << message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

}  // namespace
}  // namespace kvist::testing
