#include "common/gguf/tensor_type.h"

#include <array>

namespace kvist::gguf {
namespace {

struct TypeRow {
  TensorType type;
  std::string_view name;
  BlockShape shape;
};

constexpr std::array<TypeRow, 11> kTypes = {{
    {TensorType::kF32, "F32", {1, 4}},
    {TensorType::kF16, "F16", {1, 2}},
    {TensorType::kQ4_0, "Q4_0", {32, 18}},
    {TensorType::kQ4_1, "Q4_1", {32, 20}},
    {TensorType::kQ5_0, "Q5_0", {32, 22}},
    {TensorType::kQ5_1, "Q5_1", {32, 24}},
    {TensorType::kQ8_0, "Q8_0", {32, 34}},
    {TensorType::kQ4_K, "Q4_K", {256, 144}},
    {TensorType::kQ5_K, "Q5_K", {256, 176}},
    {TensorType::kQ6_K, "Q6_K", {256, 210}},
    {TensorType::kBF16, "BF16", {1, 2}},
}};

const TypeRow* FindRow(uint32_t number) {
  for (const TypeRow& row : kTypes) {
    if (static_cast<uint32_t>(row.type) == number) return &row;
  }
  return nullptr;
}

}  // namespace

std::optional<TensorType> TensorTypeFromNumber(uint32_t number) {
  const TypeRow* row = FindRow(number);
  if (row == nullptr) return std::nullopt;
  return row->type;
}

std::string_view TensorTypeName(TensorType type) {
  const TypeRow* row = FindRow(static_cast<uint32_t>(type));
  return row == nullptr ? "unknown" : row->name;
}

BlockShape BlockShapeOf(TensorType type) {
  const TypeRow* row = FindRow(static_cast<uint32_t>(type));
  return row == nullptr ? BlockShape{1, 0} : row->shape;
}

}  // namespace kvist::gguf
