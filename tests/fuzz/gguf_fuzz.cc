// Feeds arbitrary bytes to the GGUF reader and uses whatever it accepts, down to a tokenizer.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "common/base/check.h"
#include "common/gguf/gguf_file.h"
#include "common/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const auto file = kvist::gguf::File::Parse(bytes);
  if (!file.ok()) return 0;
  uint64_t sum = 0;
  for (const kvist::gguf::TensorInfo& tensor : (*file)->tensors()) {
    KVIST_CHECK((*file)->FindTensor(tensor.name) == &tensor);
    KVIST_CHECK(tensor.rows() > 0 && tensor.cols() > 0);
    if (tensor.data.empty()) continue;
    sum += static_cast<uint64_t>(tensor.data.front()) + static_cast<uint64_t>(tensor.data.back());
  }
  KVIST_CHECK((*file)->Fingerprint().size() == 64 && sum < UINT64_MAX);
  auto vocabulary = kvist::text::ReadVocabulary(**file);
  if (!vocabulary.ok()) return 0;
  const auto tokenizer = kvist::text::Tokenizer::Create(*std::move(vocabulary));
  if (!tokenizer.ok()) return 0;
  const auto ids =
      (*tokenizer)
          ->Encode("The cat's 12 mats\n\n<|im_end|>", kvist::text::ControlTokens::kRecognised);
  (void)(*tokenizer)->Decode(ids);
  return 0;
}
