#include "services/cli/bar_chart.h"

#include <gtest/gtest.h>

#include <vector>

namespace kvist::services {
namespace {

TEST(LogBarChartTest, LengthsAreLogarithmicFromOneCharacterToTheWidth) {
  const std::vector<Bar> bars = {{"1", "none", 0.01, "10 ms"},
                                 {"1", "paged", 0.1, "100 ms"},
                                 {"100", "none", 1, "1 s"},
                                 {"100", "paged", 0, "nothing"}};
  EXPECT_EQ(LogBarChart(bars, 5),
            "1    none  |# 10 ms\n"
            "     paged |### 100 ms\n"
            "100  none  |##### 1 s\n"
            "     paged | nothing\n"
            "Logarithmic: each # more is a factor of 3.16.\n");
}

TEST(LogBarChartTest, EqualValuesHaveOneCharacterAndNoScale) {
  const std::vector<Bar> bars = {{"1", "a", 2, "2"}, {"1", "b", 2, "2"}};
  EXPECT_EQ(LogBarChart(bars, 50), "1  a |# 2\n   b |# 2\n");
  EXPECT_EQ(LogBarChart({}, 50), "");
}

}  // namespace
}  // namespace kvist::services
