// Element types of GGUF tensors and their storage (ggml's names and numbers; block-quantised types
// hold `elements` values in `bytes` bytes).
#ifndef KVIST_COMMON_GGUF_TENSOR_TYPE_H_
#define KVIST_COMMON_GGUF_TENSOR_TYPE_H_

#include <cstdint>
#include <optional>
#include <string_view>

namespace kvist::gguf {

// Numbers are those of the file format.
enum class TensorType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

struct BlockShape {
  int64_t elements;  // values per block; a row is a whole number of blocks
  int64_t bytes;     // storage per block
};

// nullopt for a number that this project does not read.
std::optional<TensorType> TensorTypeFromNumber(uint32_t number);
std::string_view TensorTypeName(TensorType type);  // "Q4_1"
BlockShape BlockShapeOf(TensorType type);

}  // namespace kvist::gguf

#endif  // KVIST_COMMON_GGUF_TENSOR_TYPE_H_
