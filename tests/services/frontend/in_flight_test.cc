#include "services/frontend/in_flight.h"

#include <gtest/gtest.h>

#include <chrono>
#include <utility>

namespace kvist::services {
namespace {

constexpr MonotonicTime At(int64_t seconds) { return MonotonicTime(std::chrono::seconds(seconds)); }

TEST(InFlightTest, CountsByWorkerAndWhatIsYoungerThanTheReport) {
  InFlight table;
  const auto old = table.Enter("a", 100, At(10));
  const auto young = table.Enter("a", 30, At(20));
  const auto other = table.Enter("b", 7, At(20));
  const InFlight::Sum sum = table.SumOf("a", At(10));
  EXPECT_EQ(sum.prefill_tokens, 130);
  EXPECT_EQ(sum.sequences, 2);
  EXPECT_EQ(sum.recent_prefill_tokens, 30);
  EXPECT_EQ(sum.recent_sequences, 1);
  EXPECT_EQ(table.SumOf("c", At(0)).sequences, 0);
}

TEST(InFlightTest, PrefilledRequestWeighsAsASequenceOnly) {
  InFlight table;
  auto place = table.Enter("a", 100, At(10));
  place.PrefillDone();
  EXPECT_EQ(table.SumOf("a", At(0)).prefill_tokens, 0);
  EXPECT_EQ(table.SumOf("a", At(0)).sequences, 1);
}

TEST(InFlightTest, MovedPlaceIsForgottenOnce) {
  InFlight table;
  {
    auto first = table.Enter("a", 1, At(1));
    InFlight::Place second = std::move(first);
    InFlight::Place third;
    third = std::move(second);
    EXPECT_EQ(table.SumOf("a", At(0)).sequences, 1);
    third = table.Enter("b", 1, At(1));
    EXPECT_EQ(table.SumOf("a", At(0)).sequences, 0);
  }
  EXPECT_EQ(table.SumOf("b", At(0)).sequences, 0);
}

}  // namespace
}  // namespace kvist::services
