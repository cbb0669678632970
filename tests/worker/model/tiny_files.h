// GGUF files of a minimal model, whole or with one thing wrong.
#ifndef KVIST_TESTS_WORKER_MODEL_TINY_FILES_H_
#define KVIST_TESTS_WORKER_MODEL_TINY_FILES_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tests/support/gguf_builder.h"

namespace kvist::testing {

// The metadata and tensors of a model with one layer, to be changed before it is built: hidden 64,
// feed-forward 96, 4 heads over 2 of 16 values, 40 tokens; all tensors F32 and zero.
struct TinyFile {
  std::string architecture;
  std::map<std::string, std::variant<uint32_t, float, std::string>> values;  // suffix -> value
  std::map<std::string, float> numbers;                                      // whole key -> value
  std::map<std::string, std::vector<uint64_t>> tensors;                      // name -> dims
  std::string title;                // general.name; empty: the file has none
  std::vector<std::string> tokens;  // none: the file has no vocabulary

  explicit TinyFile(std::string name) : architecture(std::move(name)) {
    values = {{"block_count", 1u},
              {"context_length", 128u},
              {"embedding_length", 64u},
              {"feed_forward_length", 96u},
              {"attention.head_count", 4u},
              {"attention.head_count_kv", 2u},
              {"attention.layer_norm_rms_epsilon", 1e-5f},
              {"rope.freq_base", 5000.0f}};
    tensors = {{"token_embd.weight", {64, 40}},   {"output_norm.weight", {64}},
               {"output.weight", {64, 40}},       {"blk.0.attn_norm.weight", {64}},
               {"blk.0.attn_q.weight", {64, 64}}, {"blk.0.attn_k.weight", {64, 32}},
               {"blk.0.attn_v.weight", {64, 32}}, {"blk.0.attn_output.weight", {64, 64}},
               {"blk.0.ffn_norm.weight", {64}},   {"blk.0.ffn_gate.weight", {64, 96}},
               {"blk.0.ffn_up.weight", {64, 96}}, {"blk.0.ffn_down.weight", {96, 64}}};
  }

  std::string Build() const {
    GgufBuilder builder;
    if (!architecture.empty()) builder.AddString("general.architecture", architecture);
    if (!title.empty()) builder.AddString("general.name", title);
    for (const auto& [suffix, value] : values) {
      const std::string key = architecture + "." + suffix;
      if (const auto* number = std::get_if<uint32_t>(&value)) {
        builder.Add(key, GgufBuilder::kUint32, *number);
      } else if (const auto* real = std::get_if<float>(&value)) {
        builder.Add(key, GgufBuilder::kFloat32, *real);
      } else {
        builder.AddString(key, std::get<std::string>(value));
      }
    }
    for (const auto& [key, number] : numbers) builder.Add(key, GgufBuilder::kFloat32, number);
    if (!tokens.empty()) builder.AddStrings("tokenizer.ggml.tokens", tokens);
    for (const auto& [name, dims] : tensors) {
      uint64_t elements = 1;
      for (const uint64_t dim : dims) elements *= dim;
      builder.AddTensor(
          {.name = name, .dims = dims, .type = 0, .data = std::string(4 * elements, '\0')});
    }
    return builder.Build();
  }
};

}  // namespace kvist::testing

#endif  // KVIST_TESTS_WORKER_MODEL_TINY_FILES_H_
