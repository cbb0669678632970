#include "common/base/status.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace kvist {
namespace {

TEST(Status, DetailsComeBackAsTheyWereAttached) {
  const absl::Status status =
      WithDetails(absl::AbortedError("lost"), {.reason = ErrorReason::kQuota,
                                               .field = "prompt",
                                               .retry_after_ms = 250,
                                               .resume_index = 17});
  const ErrorDetails details = DetailsOf(status);
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(details.reason, ErrorReason::kQuota);
  EXPECT_EQ(details.field, "prompt");
  EXPECT_EQ(details.retry_after_ms, 250);
  EXPECT_EQ(details.resume_index, 17);
}

TEST(Status, AResumeIndexOfZeroIsADetail) {
  EXPECT_EQ(DetailsOf(WithDetails(absl::AbortedError("x"), {.resume_index = 0})).resume_index, 0);
}

TEST(Status, WithoutDetailsThereAreDefaults) {
  for (const absl::Status& status : {absl::OkStatus(), absl::InternalError("x")}) {
    const ErrorDetails details = DetailsOf(status);
    EXPECT_EQ(details.reason, ErrorReason::kUnspecified);
    EXPECT_EQ(details.field, "");
    EXPECT_EQ(details.retry_after_ms, 0);
    EXPECT_EQ(details.resume_index, -1);
  }
}

// Payloads may come from another process.
TEST(Status, AMalformedPayloadReadsAsTheDefault) {
  absl::Status status = absl::AbortedError("x");
  status.SetPayload("kvist/retry_after_ms", absl::Cord("soon"));
  status.SetPayload("kvist/resume_index", absl::Cord("99999999999999999999999"));
  status.SetPayload("kvist/reason", absl::Cord("NEW_REASON"));
  const ErrorDetails details = DetailsOf(status);
  EXPECT_EQ(details.retry_after_ms, 0);
  EXPECT_EQ(details.resume_index, -1);
  EXPECT_EQ(details.reason, ErrorReason::kUnspecified);
}

TEST(Status, ReasonsHaveNamesThatReadBack) {
  for (const ErrorReason reason :
       {ErrorReason::kUnspecified, ErrorReason::kQuota, ErrorReason::kOverload,
        ErrorReason::kNoWorker, ErrorReason::kDraining, ErrorReason::kNoManager}) {
    EXPECT_EQ(ErrorReasonFromName(ErrorReasonName(reason)), reason);
  }
  EXPECT_EQ(ErrorReasonFromName("no such reason"), ErrorReason::kUnspecified);
}

TEST(Status, TheMakersSetCodeFieldAndReason) {
  EXPECT_EQ(InvalidField("top_p", "must be above 0").message(), "top_p: must be above 0");
  EXPECT_EQ(InvalidField("top_p", "x").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(DetailsOf(InvalidField("top_p", "x")).field, "top_p");
  EXPECT_EQ(FieldOutOfRange("prompt", "x").code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(DetailsOf(FieldOutOfRange("prompt", "x")).field, "prompt");
  EXPECT_EQ(Overloaded("queue", 100).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(DetailsOf(Overloaded("queue", 100)).retry_after_ms, 100);
  EXPECT_EQ(DetailsOf(Overloaded("queue", 100)).reason, ErrorReason::kOverload);
  EXPECT_EQ(Unavailable(ErrorReason::kDraining, "x").code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(DetailsOf(Unavailable(ErrorReason::kDraining, "x")).reason, ErrorReason::kDraining);
}

absl::StatusOr<std::string> Half(int value) {
  if (value % 2 != 0) return absl::InvalidArgumentError("odd");
  return std::to_string(value / 2);
}

absl::Status Check(int value, int* reached) {
  KVIST_ASSIGN_OR_RETURN(const std::string half, Half(value));
  *reached = 1;
  KVIST_RETURN_IF_ERROR(Half(std::stoi(half)).status());
  *reached = 2;
  return absl::OkStatus();
}

TEST(Status, TheMacrosReturnAtTheFirstError) {
  int reached = 0;
  EXPECT_EQ(Check(3, &reached).message(), "odd");
  EXPECT_EQ(reached, 0);
  EXPECT_EQ(Check(6, &reached).message(), "odd");
  EXPECT_EQ(reached, 1);
  EXPECT_TRUE(Check(8, &reached).ok());
  EXPECT_EQ(reached, 2);
}

}  // namespace
}  // namespace kvist
