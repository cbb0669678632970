#include "common/gguf/tensor_type.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace kvist::gguf {
namespace {

TEST(TensorType, NumbersNamesAndSizesAreThoseOfTheFormat) {
  struct Row {
    uint32_t number;
    std::string_view name;
    int64_t elements;
    int64_t bytes;
  };
  const Row rows[] = {
      {0, "F32", 1, 4},       {1, "F16", 1, 2},       {2, "Q4_0", 32, 18}, {3, "Q4_1", 32, 20},
      {6, "Q5_0", 32, 22},    {7, "Q5_1", 32, 24},    {8, "Q8_0", 32, 34}, {12, "Q4_K", 256, 144},
      {13, "Q5_K", 256, 176}, {14, "Q6_K", 256, 210}, {30, "BF16", 1, 2},
  };
  std::set<uint32_t> known;
  for (const Row& row : rows) {
    const auto type = TensorTypeFromNumber(row.number);
    ASSERT_TRUE(type.has_value()) << row.name;
    EXPECT_EQ(TensorTypeName(*type), row.name);
    EXPECT_EQ(BlockShapeOf(*type).elements, row.elements);
    EXPECT_EQ(BlockShapeOf(*type).bytes, row.bytes);
    known.insert(row.number);
  }
  for (uint32_t number = 0; number < 100; ++number) {
    EXPECT_EQ(TensorTypeFromNumber(number).has_value(), known.contains(number)) << number;
  }
}

}  // namespace
}  // namespace kvist::gguf
