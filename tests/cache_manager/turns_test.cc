#include "cache_manager/turns.h"

#include <string>
#include <vector>

#include "cache_manager/limits.h"
#include "gtest/gtest.h"

namespace kvist::cache_manager {
namespace {

constexpr int64_t kNow = 1'700'000'000'000;

SessionRecord Session() {
  return {.id = SessionId("s"),
          .tenant = TenantId("t"),
          .model = "m",
          .token_ids = {1, 2},
          .version = 4,
          .last_used_wall_ms = kNow};
}
BeginTurnRequest Begin(const std::string& turn) {
  return {.turn = TurnId(turn), .request = RequestId("r"), .seed = 9, .lease_ms = 1'000};
}
EndTurnRequest End(const std::string& turn, std::span<const int32_t> tokens) {
  return {.turn = TurnId(turn), .appended = tokens, .finish = TurnFinish::kStop};
}

TEST(TurnsTest, ATurnAppendsOnceAndRaisesTheVersion) {
  SessionRecord record = Session();
  const std::vector<int32_t> tokens = {3, 4};
  ASSERT_TRUE(BeginTurn(Begin("a"), kNow, record).ok());
  EXPECT_EQ(record.version, 5u);
  ASSERT_TRUE(EndTurn(End("a", tokens), kNow + 5, record).ok());
  EXPECT_EQ(record.token_ids, (std::vector<int32_t>{1, 2, 3, 4}));
  EXPECT_EQ(record.version, 6u);
  EXPECT_EQ(record.last_used_wall_ms, kNow + 5);
  EXPECT_FALSE(record.open_turn.has_value());
  ASSERT_TRUE(EndTurn(End("a", tokens), kNow + 6, record).ok());  // a retry
  EXPECT_EQ(record.version, 6u);
}

TEST(TurnsTest, ASecondTurnIsAbortedUntilTheFirstExpires) {
  SessionRecord record = Session();
  ASSERT_TRUE(BeginTurn(Begin("a"), kNow, record).ok());
  const SessionRecord before = record;
  EXPECT_EQ(BeginTurn(Begin("b"), kNow + 999, record).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(record, before);
  EXPECT_TRUE(BeginTurn(Begin("b"), kNow + 1'000, record).ok());
  EXPECT_EQ(EndTurn(End("a", {}), kNow + 1'001, record).code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(EndTurn(End("b", {}), kNow + 1'001, record).ok());
}

TEST(TurnsTest, TheSameTurnAgainRenewsItsLease) {
  SessionRecord record = Session();
  ASSERT_TRUE(BeginTurn(Begin("a"), kNow, record).ok());
  ASSERT_TRUE(BeginTurn(Begin("a"), kNow + 900, record).ok());
  EXPECT_EQ(BeginTurn(Begin("b"), kNow + 1'500, record).code(), absl::StatusCode::kAborted);
}

TEST(TurnsTest, AnUnexpectedVersionIsAborted) {
  SessionRecord record = Session();
  BeginTurnRequest request = Begin("a");
  request.expected_version = 3;
  EXPECT_EQ(BeginTurn(request, kNow, record).code(), absl::StatusCode::kAborted);
  request.expected_version = 4;
  EXPECT_TRUE(BeginTurn(request, kNow, record).ok());
}

TEST(TurnsTest, TheHistoryHasALimit) {
  SessionRecord record = Session();
  record.token_ids.assign(kMaxSessionTokens - 1, 1);
  ASSERT_TRUE(BeginTurn(Begin("a"), kNow, record).ok());
  const std::vector<int32_t> two = {1, 2};
  EXPECT_EQ(EndTurn(End("a", two), kNow, record).code(), absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(record.open_turn.has_value());
  EXPECT_TRUE(EndTurn(End("a", std::span(two).first(1)), kNow, record).ok());
  EXPECT_TRUE(Validate(record).ok());
  record.token_ids.push_back(1);
  EXPECT_EQ(Validate(record).code(), absl::StatusCode::kOutOfRange);
}

TEST(TurnsTest, BadArgumentsAreNamed) {
  SessionRecord record = Session();
  BeginTurnRequest request = Begin("a");
  request.lease_ms = kMaxTurnLeaseMs + 1;
  EXPECT_EQ(BeginTurn(request, kNow, record).code(), absl::StatusCode::kInvalidArgument);
  request.lease_ms = kMaxTurnLeaseMs;
  request.turn = TurnId(std::string(kMaxIdBytes + 1, 'x'));
  EXPECT_EQ(BeginTurn(request, kNow, record).code(), absl::StatusCode::kInvalidArgument);
  request.turn = TurnId(std::string(kMaxIdBytes, 'x'));
  EXPECT_TRUE(BeginTurn(request, kNow, record).ok());
  const std::vector<int32_t> negative = {-1};
  EndTurnRequest end{.turn = request.turn, .appended = negative};
  EXPECT_EQ(EndTurn(end, kNow, record).code(), absl::StatusCode::kInvalidArgument);
  end = {.turn = request.turn, .finish = TurnFinish::kNone};
  EXPECT_EQ(EndTurn(end, kNow, record).code(), absl::StatusCode::kInvalidArgument);
}

TEST(TurnsTest, TruncateNeedsAClosedSession) {
  SessionRecord record = Session();
  EXPECT_EQ(TruncateSession({.tokens = 3}, kNow, record).code(), absl::StatusCode::kOutOfRange);
  ASSERT_TRUE(TruncateSession({.tokens = 1}, kNow, record).ok());
  EXPECT_EQ(record.token_ids.size(), 1u);
  ASSERT_TRUE(BeginTurn(Begin("a"), kNow, record).ok());
  EXPECT_EQ(TruncateSession({.tokens = 0}, kNow, record).code(), absl::StatusCode::kAborted);
}

TEST(TurnsTest, TruncateKeepsTheLastOrTheFirstTokens) {
  using Kept = TruncateSessionRequest::Kept;
  SessionRecord record = Session();
  record.token_ids = {1, 2, 3, 4, 5};
  const uint64_t version = record.version;
  ASSERT_TRUE(TruncateSession({.kept = Kept::kLast, .tokens = 4}, kNow, record).ok());
  EXPECT_EQ(record.token_ids, (std::vector<int32_t>{2, 3, 4, 5}));
  ASSERT_TRUE(TruncateSession({.kept = Kept::kFirst, .tokens = 2}, kNow, record).ok());
  EXPECT_EQ(record.token_ids, (std::vector<int32_t>{2, 3}));
  ASSERT_TRUE(TruncateSession({.kept = Kept::kLast, .tokens = 0}, kNow, record).ok());
  EXPECT_TRUE(record.token_ids.empty());
  EXPECT_EQ(record.version, version + 3);
}

TEST(TurnsTest, AForkHasTheHistoryAndAVersionOfItsOwn) {
  SessionRecord record = Session();
  record.token_ids = {1, 2, 3};
  record.version = 9;
  record.time_to_live_ms = 100;
  const SessionRecord before = record;
  EXPECT_EQ(ForkSession(SessionId(), kNow, record).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(record, before);
  ASSERT_TRUE(ForkSession(SessionId("fork"), kNow + 50, record).ok());
  EXPECT_EQ(record.id, SessionId("fork"));
  EXPECT_EQ(record.version, 1u);
  EXPECT_EQ(record.token_ids, before.token_ids);
  EXPECT_EQ(record.created_wall_ms, kNow + 50);
  EXPECT_TRUE(IsExpired(record, kNow + 150));
  EXPECT_FALSE(IsExpired(record, kNow + 149));
  ASSERT_TRUE(BeginTurn(Begin("a"), kNow, record).ok());
  EXPECT_EQ(ForkSession(SessionId("b"), kNow, record).code(), absl::StatusCode::kAborted);
  ASSERT_TRUE(ForkSession(SessionId("b"), kNow + 1'000, record).ok());  // the lease has passed
  EXPECT_FALSE(record.open_turn.has_value());
}

TEST(TurnsTest, ExpiryCountsFromTheLastUseAndSparesOpenTurns) {
  SessionRecord record = Session();
  EXPECT_FALSE(IsExpired(record, kNow + 1'000'000));
  record.time_to_live_ms = 100;
  EXPECT_FALSE(IsExpired(record, kNow + 99));
  EXPECT_TRUE(IsExpired(record, kNow + 100));
  ASSERT_TRUE(BeginTurn(Begin("a"), kNow, record).ok());
  EXPECT_FALSE(IsExpired(record, kNow + 999));
  EXPECT_TRUE(IsExpired(record, kNow + 1'000));
}

}  // namespace
}  // namespace kvist::cache_manager
