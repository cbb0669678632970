#include "worker/model/weights.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/gguf/gguf_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/gguf_builder.h"
#include "tests/support/model_files.h"
#include "tests/worker/model/tiny_files.h"
#include "worker/model/registry.h"
#include "worker/tensor/dequantize.h"

namespace kvist::testing {
namespace {

using ::testing::HasSubstr;
using worker::Weights;

void InOrder(int64_t count, absl::FunctionRef<void(int64_t)> body) {
  for (int64_t i = 0; i < count; ++i) body(i);
}

absl::StatusOr<std::unique_ptr<Weights>> Load(const gguf::File& file, worker::WeightMode mode) {
  const auto config = worker::ReadModelConfig(file);
  if (!config.ok()) return config.status();
  return worker::LoadWeights(file, *config, InOrder, {.mode = mode, .progress = nullptr});
}

absl::Status LoadStatus(const TinyFile& tiny) {
  const std::string bytes = tiny.Build();
  const auto file = gguf::File::Parse(AsBytes(bytes));
  if (!file.ok()) return file.status();
  return Load(**file, worker::WeightMode::kNative).status();
}

TEST(PlanWeightsTest, SaysWhatLoadingTakes) {
  for (const char* model : {"llama_a.Q4_1", "llama_k.Q4_K", "qwen2_tied.Q8_0"}) {
    const auto file = gguf::File::Open(GoldenPath("tiny/" + std::string(model) + ".gguf"));
    ASSERT_TRUE(file.ok()) << file.status();
    const auto config = worker::ReadModelConfig(**file);
    ASSERT_TRUE(config.ok()) << config.status();
    for (const auto mode : {worker::WeightMode::kNative, worker::WeightMode::kFloat32}) {
      const auto sizes = worker::PlanWeights(**file, *config, mode);
      ASSERT_TRUE(sizes.ok()) << sizes.status();
      const auto weights = Load(**file, mode);
      ASSERT_TRUE(weights.ok()) << weights.status();
      EXPECT_EQ(sizes->arena_bytes, (*weights)->arena.size_bytes());
      EXPECT_EQ(sizes->step_bytes, (*weights)->step_bytes);
      EXPECT_EQ(sizes->parameters, (*weights)->parameters);
    }
  }
}

TEST(LoadWeightsTest, TakesExactlyTheTensorsOfEachArchitecture) {
  TinyFile qwen2("qwen2");
  EXPECT_THAT(std::string(LoadStatus(qwen2).message()), HasSubstr("blk.0.attn_q.bias: missing"));
  qwen2.tensors["blk.0.attn_q.bias"] = {64};
  qwen2.tensors["blk.0.attn_k.bias"] = {32};
  qwen2.tensors["blk.0.attn_v.bias"] = {32};
  EXPECT_TRUE(LoadStatus(qwen2).ok()) << LoadStatus(qwen2);

  TinyFile llama("llama");
  EXPECT_TRUE(LoadStatus(llama).ok()) << LoadStatus(llama);
  llama.tensors["blk.0.attn_q.bias"] = {64};
  EXPECT_THAT(std::string(LoadStatus(llama).message()), HasSubstr("blk.0.attn_q.bias: not known"));

  TinyFile tied("llama");
  tied.tensors.erase("output.weight");
  EXPECT_TRUE(LoadStatus(tied).ok()) << LoadStatus(tied);
}

TEST(LoadWeightsTest, WhatIsMissingMisshapenOrUnknownIsNamed) {
  using Change = std::function<void(TinyFile&)>;
  const std::vector<std::pair<std::string, Change>> cases = {
      {"blk.0.ffn_up.weight: missing", [](auto& f) { f.tensors.erase("blk.0.ffn_up.weight"); }},
      {"output_norm.weight: missing", [](auto& f) { f.tensors.erase("output_norm.weight"); }},
      {"blk.1.attn_norm.weight: missing", [](auto& f) { f.values["block_count"] = 2u; }},
      {"blk.0.attn_k.weight: its shape is [64, 64], expected [64, 32]",
       [](auto& f) {
         f.tensors["blk.0.attn_k.weight"] = {64, 64};
       }},
      {"blk.0.ffn_down.weight: its shape is [64, 96], expected [96, 64]",
       [](auto& f) {
         f.tensors["blk.0.ffn_down.weight"] = {64, 96};
       }},
      {"blk.0.attn_norm.weight: its shape is [32], expected [64]",
       [](auto& f) { f.tensors["blk.0.attn_norm.weight"] = {32}; }},
      {"output_norm.weight: its shape is [64, 2]",
       [](auto& f) {
         f.tensors["output_norm.weight"] = {64, 2};
       }},
      {"output.weight: its shape is [64, 41]",
       [](auto& f) {
         f.tensors["output.weight"] = {64, 41};
       }},
      {"token_embd.weight: its shape is [32, 40]",
       [](auto& f) {
         f.tensors["token_embd.weight"] = {32, 40};
       }},
      {"rope_freqs.weight: its shape is [9], expected [8]",
       [](auto& f) { f.tensors["rope_freqs.weight"] = {9}; }},
      {"blk.1.attn_q.weight: not known",
       [](auto& f) {
         f.tensors["blk.1.attn_q.weight"] = {64, 64};
       }},
      {"vision.weight: not known", [](auto& f) { f.tensors["vision.weight"] = {3}; }},
  };
  for (const auto& [message, change] : cases) {
    TinyFile tiny("llama");
    change(tiny);
    const absl::Status status = LoadStatus(tiny);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

// Of a tied and an untied model, in both modes: the embedding's rows and the packed matrices are
// the file's values.
TEST(LoadWeightsTest, ValuesAreThoseOfTheFileInBothModes) {
  for (const char* name :
       {"tiny/qwen3_a.Q5_0.gguf", "tiny/llama_a.Q4_1.gguf", "tiny/llama_k.Q6_K.gguf"}) {
    const auto file = gguf::File::Open(GoldenPath(name));
    ASSERT_TRUE(file.ok()) << file.status();
    for (const auto mode : {worker::WeightMode::kNative, worker::WeightMode::kFloat32}) {
      const auto weights = Load(**file, mode);
      ASSERT_TRUE(weights.ok()) << weights.status();
      const auto expect_rows = [&](const char* tensor_name, auto&& row_of) {
        const gguf::TensorInfo& tensor = *(*file)->FindTensor(tensor_name);
        const size_t row_bytes = tensor.data.size() / static_cast<size_t>(tensor.rows());
        std::vector<float> want(static_cast<size_t>(tensor.cols()));
        std::vector<float> got(want.size());
        for (int64_t row = 0; row < tensor.rows(); ++row) {
          worker::Dequantize(tensor.type,
                             tensor.data.subspan(static_cast<size_t>(row) * row_bytes, row_bytes),
                             want);
          row_of(row, got);
          ASSERT_EQ(got, want) << tensor_name << " row " << row;
        }
      };
      expect_rows("token_embd.weight", [&](int64_t row, std::vector<float>& out) {
        (*weights)->embedding.Row(row, out);
      });
      expect_rows("blk.1.ffn_down.weight", [&](int64_t row, std::vector<float>& out) {
        worker::UnpackRow((*weights)->layers[1].down, row, out);
      });
      EXPECT_EQ((*weights)->layers[1].down.type,
                mode == worker::WeightMode::kNative
                    ? (*file)->FindTensor("blk.1.ffn_down.weight")->type
                    : gguf::TensorType::kF32);
    }
  }
}

}  // namespace
}  // namespace kvist::testing
