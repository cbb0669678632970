// Writes the seeds of the fuzz targets: make_corpus FOLDER makes FOLDER/gguf, FOLDER/text,
// FOLDER/block_file and FOLDER/session_file. The result is kept in the tree (tests/fuzz/corpus);
// run this again when the builder or the targets change.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/gguf_builder.h"
#include "worker/kv/block_file.h"
#include "worker/kv/session_file.h"

namespace kvist::testing {
namespace {

using B = GgufBuilder;

void Write(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

B Vocabulary(std::string_view model) {
  B builder;
  builder.AddString("general.architecture", "llama")
      .AddString("tokenizer.ggml.model", model)
      .AddString("tokenizer.ggml.pre", "smollm")
      .AddStrings("tokenizer.ggml.tokens", {"a", "t", "at", "<|im_end|>", "<0x0A>"})
      .AddArray<int32_t>("tokenizer.ggml.token_type", B::kInt32, {1, 1, 1, 3, 6})
      .AddArray<float>("tokenizer.ggml.scores", B::kFloat32, {0, -1, -2, 0, 0})
      .AddStrings("tokenizer.ggml.merges", {"a t"})
      .Add<uint32_t>("tokenizer.ggml.bos_token_id", B::kUint32, 3)
      .Add<uint8_t>("tokenizer.ggml.add_bos_token", B::kBool, 1);
  return builder;
}

void WriteGguf(const std::filesystem::path& folder) {
  const std::string floats(64, 'f');
  Write(folder / "empty", B().Build());
  Write(folder / "byte_bpe", Vocabulary("gpt2").Build());
  Write(folder / "sentencepiece", Vocabulary("llama").Build());
  Write(folder / "values", B().Add<uint8_t>("a", B::kUint8, 1)
                               .Add<int8_t>("b", B::kInt8, -1)
                               .Add<uint16_t>("c", B::kUint16, 2)
                               .Add<int16_t>("d", B::kInt16, -2)
                               .Add<double>("e", B::kFloat64, 0.5)
                               .Add<uint64_t>("f", B::kUint64, 9)
                               .AddArray<uint8_t>("g", B::kBool, {0, 1})
                               .AddArray<int64_t>("h", B::kInt64, {1, -1})
                               .Build());
  Write(folder / "tensors",
        B().Version(2)
            .AddTensor({.name = "x", .dims = {4, 4}, .type = 0, .data = floats})
            .AddTensor({.name = "y", .dims = {32, 2}, .type = 3, .data = std::string(40, 'y')})
            .Build());
  Write(folder / "alignment",
        B().Add<uint32_t>("general.alignment", B::kUint32, 64)
            .Alignment(64)
            .AddTensor({.name = "x", .dims = {16}, .type = 0, .data = floats})
            .AddTensor({.name = "z", .dims = {2, 2, 2, 2}, .type = 30, .data = floats})
            .Build());
  Write(folder / "overlap",
        B().AddTensor({.name = "x", .dims = {16}, .type = 0, .data = floats})
            .AddTensor({.name = "y", .dims = {8}, .type = 0, .data = floats, .offset_bytes = 32})
            .Build());
}

void WriteText(const std::filesystem::path& folder) {
  const std::vector<std::string> texts = {
      "The red cat was 1234 years old, and it's fine.\n\n  Really  ?\r\n",
      "<|im_start|>user\nHi<t><|im_end|>\n",
      "caf\u00e9 e\u0301\u0323 \u2581\u2581 \u4e2d\u6587 \U0001F600\u200d \u00bd\u2460",
      "\xF0\x9F\x98 \xC0\xAF \xED\xA0\x80 \xFF", std::string(300, 'a')};
  for (size_t t = 0; t < texts.size(); ++t) {
    for (char tokenizer = 0; tokenizer < 5; ++tokenizer) {
      const std::string head = {tokenizer, static_cast<char>(t)};
      Write(folder / (std::to_string(t) + "_" + std::to_string(int{tokenizer})), head + texts[t]);
    }
  }
}

// The scope is the target's; its first byte says which checksums it puts right.
void WriteBlockFile(const std::filesystem::path& folder) {
  const worker::BlockFile file(
      {.model_fingerprint = "fuzz", .numerics_id = "fuzz", .block_bytes = 64});
  for (const size_t tokens : {16u, 1u, 15u}) {
    worker::BlockFileEntry entry{.parent = cache_manager::RootKey({}), .sequence = tokens};
    for (size_t i = 0; i < tokens; ++i) entry.tokens.push_back(static_cast<int32_t>(i));
    if (tokens == 16) entry.key = cache_manager::ChildKey(entry.parent, entry.tokens);
    std::vector<std::byte> record(file.record_bytes());
    file.Encode(entry, record);
    const std::string_view bytes(reinterpret_cast<const char*>(record.data()), record.size());
    for (char sign = 0; sign < 4; ++sign) {
      Write(folder / (std::to_string(tokens) + "_" + std::to_string(int{sign})),
            std::string(1, sign) + std::string(bytes));
    }
  }
}

// The target's first byte: whether it puts the checksum right, and how much it reads at once.
void WriteSessionFile(const std::filesystem::path& folder) {
  worker::SessionFileRecord record{.id = "s", .time_to_live_ms = 1000};
  std::vector<worker::SessionFileRecord> records = {record};
  record.model_fingerprint = "m";
  record.turns = 1;
  record.token_ids = {1, 2, 3};
  record.attention = {.window_tokens = 16, .sink_tokens = 1};
  records.push_back(record);
  record.blocks = worker::SessionFileBlocks{.numerics_id = "n",
                                            .kv_format = "f16",
                                            .tokens = 2,
                                            .groups = {{.block_bytes = 1, .blocks = 1}}};
  records.push_back(record);
  for (size_t i = 0; i < records.size(); ++i) {
    std::string file = worker::EncodeSessionFileHead(records[i]);
    if (records[i].blocks.has_value()) file.append(records[i].blocks->records_bytes(), 'b');
    worker::SessionFileChecksum checksum;
    checksum.Add(std::as_bytes(std::span(file.data(), file.size())));
    file += worker::SessionFileTrailer(checksum.Finish(), "fuzz");
    for (const char first : {'\x7f', '\xff', '\x86'}) {
      Write(folder / (std::to_string(i) + "_" + std::to_string(static_cast<unsigned char>(first))),
            first + file);
    }
  }
}

}  // namespace
}  // namespace kvist::testing

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: make_corpus FOLDER\n");
    return 2;
  }
  const std::filesystem::path folder = argv[1];
  std::filesystem::create_directories(folder / "gguf");
  std::filesystem::create_directories(folder / "text");
  std::filesystem::create_directories(folder / "block_file");
  std::filesystem::create_directories(folder / "session_file");
  kvist::testing::WriteGguf(folder / "gguf");
  kvist::testing::WriteText(folder / "text");
  kvist::testing::WriteBlockFile(folder / "block_file");
  kvist::testing::WriteSessionFile(folder / "session_file");
  return 0;
}
