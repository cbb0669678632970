#include "worker/model/rope_table.h"

#include <cmath>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvist::worker {
namespace {

TEST(RopeTableTest, AnglesFollowBaseScaleAndFactors) {
  const float factors[] = {1.0f, 2.0f, 8.0f};
  const auto table = RopeTable::Create({.base = 1000.0, .position_scale = 4.0}, 50, 3, factors);
  ASSERT_TRUE(table.ok()) << table.status();
  for (const int64_t position : {0, 1, 49}) {
    for (int i = 0; i < 3; ++i) {
      const double angle =
          static_cast<double>(position) / 4.0 * std::pow(1000.0, -i / 3.0) / factors[i];
      EXPECT_FLOAT_EQ(table->Cosines(position)[i], static_cast<float>(std::cos(angle)));
      EXPECT_FLOAT_EQ(table->Sines(position)[i], static_cast<float>(std::sin(angle)));
    }
  }
}

TEST(RopeTableTest, FactorsThatAreNotPositiveNumbersAreRefused) {
  for (const float factor : {0.0f, -1.0f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    const absl::Status status = RopeTable::Create({}, 10, 1, &factor).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("rope_freqs.weight: value 0"));
  }
}

}  // namespace
}  // namespace kvist::worker
