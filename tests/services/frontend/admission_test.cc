#include "services/frontend/admission.h"

#include <gtest/gtest.h>

#include <optional>
#include <vector>

#include "common/base/status.h"

namespace kvist::services {
namespace {

TEST(AdmissionTest, AdmitsUpToTheLimitAndRefusesOneMoreWithAdvice) {
  Admission admission(3);
  std::vector<Admission::Ticket> tickets;
  for (int i = 0; i < 3; ++i) {
    auto ticket = admission.Admit(1);
    ASSERT_TRUE(ticket.ok());
    tickets.push_back(*std::move(ticket));
  }
  const auto refused = admission.Admit(1);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(DetailsOf(refused.status()).reason, ErrorReason::kOverload);
  EXPECT_GT(DetailsOf(refused.status()).retry_after_ms, 0);
  EXPECT_EQ(admission.running(), 3);
}

TEST(AdmissionTest, ReturnedPlaceIsGivenOutAgainOnce) {
  Admission admission(1);
  {
    auto ticket = admission.Admit(1);
    ASSERT_TRUE(ticket.ok());
    const Admission::Ticket moved = *std::move(ticket);
    EXPECT_EQ(admission.running(), 1);
  }
  EXPECT_EQ(admission.running(), 0);
  EXPECT_TRUE(admission.Admit(1).ok());
}

TEST(AdmissionTest, ClosedSaysThatItIsDraining) {
  Admission admission(1);
  admission.Close();
  EXPECT_EQ(admission.Admit(1).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(DetailsOf(admission.Admit(1).status()).reason, ErrorReason::kDraining);
}

TEST(AdmissionTest, SamplesTakeAPlaceEachAllOrNone) {
  Admission admission(4);
  auto three = admission.Admit(3);
  ASSERT_TRUE(three.ok());
  EXPECT_EQ(admission.Admit(2).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(admission.running(), 3);
  {
    const Admission::Ticket moved = *std::move(three);
    EXPECT_TRUE(admission.Admit(1).ok());
  }
  EXPECT_EQ(admission.running(), 0);
  EXPECT_TRUE(admission.Admit(4).ok());
  EXPECT_EQ(admission.Admit(5).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(DetailsOf(admission.Admit(5).status()).field, "samples");
}

}  // namespace
}  // namespace kvist::services
