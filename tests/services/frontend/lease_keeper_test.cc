#include "services/frontend/lease_keeper.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <string>

#include "services/frontend/session_turn.h"
#include "tests/services/frontend/fake_manager.h"

namespace kvist::services {
namespace {

// As often as it can: what is tested is who is renewed, not when.
constexpr std::chrono::milliseconds kInterval{1};

using Calls = FakeManager::Calls;

int64_t RenewalsOf(const Calls& calls, const std::string& session) {
  return std::count_if(calls.begins.begin(), calls.begins.end(),
                       [&](const auto& begin) { return begin.session_id() == session; });
}

class LeaseKeeperTest : public ::testing::Test {
 protected:
  bool WaitForRenewals(const std::string& session, int64_t count) const {
    return manager_.WaitUntil(
        [&](const Calls& calls) { return RenewalsOf(calls, session) >= count; });
  }

  FakeManager manager_;
  ManagerClient client_{manager_.channel()};
  RunningTurns running_;
  LeaseKeeper keeper_{&client_, &running_};
};

TEST_F(LeaseKeeperTest, EveryRunningTurnIsRenewedAgainAndAgain) {
  const auto a = running_.TryEnter(SessionId("a"), TurnId("turn-a")),
             b = running_.TryEnter(SessionId("b"), TurnId("turn-b"));
  keeper_.Start(kInterval);
  EXPECT_TRUE(WaitForRenewals("a", 3));
  EXPECT_TRUE(WaitForRenewals("b", 3));
  keeper_.Stop();
  for (const v1::BeginTurnRequest& begin : manager_.calls().begins) {
    EXPECT_TRUE(begin.renew());
    EXPECT_EQ(begin.turn_id(), "turn-" + begin.session_id());
    EXPECT_EQ(begin.lease_ms(), SessionTurn::kLease.count());
  }
}

TEST_F(LeaseKeeperTest, ATurnThatEndedIsNotRenewed) {
  auto ended = running_.TryEnter(SessionId("ended"), TurnId("t"));
  const auto other = running_.TryEnter(SessionId("other"), TurnId("t"));
  keeper_.Start(kInterval);
  EXPECT_TRUE(WaitForRenewals("ended", 1));
  ended.reset();
  // The round under way may still have it; the one after the next begins without it.
  EXPECT_TRUE(WaitForRenewals("other", RenewalsOf(manager_.calls(), "other") + 2));
  const int64_t renewals = RenewalsOf(manager_.calls(), "ended");
  EXPECT_TRUE(WaitForRenewals("other", RenewalsOf(manager_.calls(), "other") + 2));
  EXPECT_EQ(RenewalsOf(manager_.calls(), "ended"), renewals);
}

TEST_F(LeaseKeeperTest, ATurnThatIsNotOpenAnyMoreDoesNotKeepOthersFromTheirs) {
  manager_.on_begin = [](const v1::BeginTurnRequest& request, v1::BeginTurnResponse*) {
    if (request.session_id() == "taken") return grpc::Status(grpc::StatusCode::ABORTED, "taken");
    if (request.session_id() == "gone") return grpc::Status(grpc::StatusCode::NOT_FOUND, "gone");
    return grpc::Status::OK;
  };
  const auto taken = running_.TryEnter(SessionId("taken"), TurnId("t")),
             gone = running_.TryEnter(SessionId("gone"), TurnId("t"));
  const auto open = running_.TryEnter(SessionId("open"), TurnId("t"));
  keeper_.Start(kInterval);
  for (const char* session : {"open", "taken", "gone"}) EXPECT_TRUE(WaitForRenewals(session, 2));
}

TEST_F(LeaseKeeperTest, WhileTheManagerIsAwayEachRoundTriesOnceAndTheNextOnesGoOn) {
  std::atomic<int> left{3};
  manager_.on_begin = [&](const v1::BeginTurnRequest&, v1::BeginTurnResponse*) {
    return left-- > 0 ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "away") : grpc::Status::OK;
  };
  const auto a = running_.TryEnter(SessionId("a"), TurnId("t")),
             b = running_.TryEnter(SessionId("b"), TurnId("t"));
  keeper_.Start(kInterval);
  EXPECT_TRUE(WaitForRenewals("a", 2));
  EXPECT_TRUE(WaitForRenewals("b", 2));
  keeper_.Stop();
  // The first three rounds stopped at their first turn, which is the same in each.
  const Calls calls = manager_.calls();
  for (size_t i = 1; i < 3; ++i) {
    EXPECT_EQ(calls.begins[i].session_id(), calls.begins[0].session_id());
  }
}

TEST_F(LeaseKeeperTest, StopsAtOnceTwiceAndWithoutAStart) {
  keeper_.Stop();
  keeper_.Stop();
  LeaseKeeper long_interval(&client_, &running_);
  const auto turn = running_.TryEnter(SessionId("a"), TurnId("t"));
  long_interval.Start(std::chrono::hours(1));
  long_interval.Stop();
  long_interval.Stop();
  EXPECT_TRUE(manager_.calls().begins.empty());
}

}  // namespace
}  // namespace kvist::services
