#include "tests/support/chat_model.h"

#include <fstream>
#include <iterator>
#include <string_view>

#include "tests/support/gguf_builder.h"
#include "tests/support/model_files.h"

namespace kvist::testing {
namespace {

// magic, version, number of tensors, number of metadata entries (ggml's docs/gguf.md).
constexpr size_t kHeaderBytes = 4 + 4 + 8 + 8;
constexpr size_t kMetadataCountOffset = kHeaderBytes - 8;
constexpr size_t kAlignmentBytes = 32;
constexpr std::string_view kTemplate =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n'}}{% endfor %}";

// A string entry whose size keeps the alignment of what follows.
std::string TemplateEntry() {
  std::string text(kTemplate);
  while (true) {
    const std::string entry = GgufBuilder::StringBytes("tokenizer.chat_template") +
                              GgufBuilder::Bytes<uint32_t>(GgufBuilder::kString) +
                              GgufBuilder::StringBytes(text);
    if (entry.size() % kAlignmentBytes == 0) return entry;
    text += ' ';
  }
}

}  // namespace

bool WriteChatModel(const std::string& path, uint32_t context_tokens) {
  std::ifstream source(GoldenPath("tiny/qwen3_a.Q4_0.gguf"), std::ios::binary);
  std::string file((std::istreambuf_iterator<char>(source)), std::istreambuf_iterator<char>());
  const std::string key = GgufBuilder::StringBytes("qwen3.context_length") +
                          GgufBuilder::Bytes<uint32_t>(GgufBuilder::kUint32);
  const size_t context = file.find(key);
  if (context == std::string::npos) return false;
  file.replace(context + key.size(), sizeof(context_tokens), GgufBuilder::Bytes(context_tokens));
  ++file[kMetadataCountOffset];
  file.insert(kHeaderBytes, TemplateEntry());
  std::ofstream out(path, std::ios::binary);
  out << file;
  out.close();
  return out.good();
}

}  // namespace kvist::testing
