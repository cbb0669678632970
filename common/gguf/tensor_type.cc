#include "common/gguf/tensor_type.h"

#include <array>

#include "common/base/check.h"

namespace kvist::gguf {
namespace {

struct TypeRow {
  TensorType type;
  std::string_view name;
  BlockShape shape;
};

// Block layouts of ggml: 32 values share one half-precision scale (and a minimum in the _1 types);
// K types share a super-block of 256 values.
constexpr std::array<TypeRow, 11> kTypes = {{
    {TensorType::kF32, "F32", {.elements = 1, .bytes = 4}},
    {TensorType::kF16, "F16", {.elements = 1, .bytes = 2}},
    {TensorType::kQ4_0, "Q4_0", {.elements = 32, .bytes = 18}},
    {TensorType::kQ4_1, "Q4_1", {.elements = 32, .bytes = 20}},
    {TensorType::kQ5_0, "Q5_0", {.elements = 32, .bytes = 22}},
    {TensorType::kQ5_1, "Q5_1", {.elements = 32, .bytes = 24}},
    {TensorType::kQ8_0, "Q8_0", {.elements = 32, .bytes = 34}},
    {TensorType::kQ4_K, "Q4_K", {.elements = 256, .bytes = 144}},
    {TensorType::kQ5_K, "Q5_K", {.elements = 256, .bytes = 176}},
    {TensorType::kQ6_K, "Q6_K", {.elements = 256, .bytes = 210}},
    {TensorType::kBF16, "BF16", {.elements = 1, .bytes = 2}},
}};

const TypeRow& RowOf(TensorType type) {
  for (const TypeRow& row : kTypes) {
    if (row.type == type) return row;
  }
  CheckFailed(__FILE__, __LINE__, "type is in the table", "");
}

}  // namespace

std::optional<TensorType> TensorTypeFromNumber(uint32_t number) {
  for (const TypeRow& row : kTypes) {
    if (static_cast<uint32_t>(row.type) == number) return row.type;
  }
  return std::nullopt;
}

std::string_view TensorTypeName(TensorType type) { return RowOf(type).name; }

BlockShape BlockShapeOf(TensorType type) { return RowOf(type).shape; }

}  // namespace kvist::gguf
