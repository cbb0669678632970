#include "services/frontend/session_turn.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/services/frontend/fake_manager.h"

namespace kvist::services {
namespace {

class SessionTurnTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<SessionTurn>> Begin() {
    SessionTurn::Options options{
        .session = SessionId("s"), .turn = TurnId("t"), .model_fingerprint = "m"};
    options.record.set_request_id("r");
    return SessionTurn::Begin(options, &client_, &running_);
  }
  void AnswerBeginWith(grpc::StatusCode code) {
    manager_.on_begin = [code](const v1::BeginTurnRequest&, v1::BeginTurnResponse*) {
      return grpc::Status(code, "no");
    };
  }

  FakeManager manager_;
  ManagerClient client_{manager_.channel()};
  RunningTurns running_;
};

TEST_F(SessionTurnTest, ATurnDroppedWithoutAnEndIsDiscarded) {
  {
    const auto turn = Begin();
    ASSERT_TRUE(turn.ok()) << turn.status();
    EXPECT_TRUE(manager_.calls().ends.empty());
  }
  const FakeManager::Calls calls = manager_.calls();
  ASSERT_EQ(calls.begins.size(), 1u);
  EXPECT_EQ(calls.begins[0].lease_ms(), SessionTurn::kLease.count());
  ASSERT_EQ(calls.ends.size(), 1u);
  EXPECT_TRUE(calls.ends[0].discard());
  EXPECT_EQ(calls.ends[0].session_id(), "s");
  EXPECT_EQ(calls.ends[0].turn_id(), "t");
  EXPECT_EQ(calls.ends[0].appended_ids_size(), 0);
  EXPECT_TRUE(running_.All().empty());
}

TEST_F(SessionTurnTest, ATurnThatEndedIsNotDiscarded) {
  const std::vector<int32_t> prompt = {1, 2}, generated = {3};
  {
    const auto turn = Begin();
    ASSERT_TRUE(turn.ok()) << turn.status();
    const TurnSaved saved =
        (*turn)->End({.prompt_ids = prompt, .generated_ids = generated, .reason = v1::STOP},
                     MonotonicTime::min());
    EXPECT_TRUE(saved.saved);
  }
  const FakeManager::Calls calls = manager_.calls();
  ASSERT_EQ(calls.ends.size(), 1u);
  EXPECT_FALSE(calls.ends[0].discard());
  EXPECT_EQ(calls.ends[0].appended_ids_size(), 3);
  EXPECT_EQ(calls.ends[0].prompt_ids(), 2);
}

TEST_F(SessionTurnTest, ABeginThatWasRefusedLeavesNothingToDiscard) {
  for (const grpc::StatusCode code :
       {grpc::StatusCode::ABORTED, grpc::StatusCode::NOT_FOUND,
        grpc::StatusCode::FAILED_PRECONDITION, grpc::StatusCode::INVALID_ARGUMENT}) {
    AnswerBeginWith(code);
    EXPECT_FALSE(Begin().ok());
  }
  EXPECT_TRUE(manager_.calls().ends.empty());
  EXPECT_TRUE(running_.All().empty());
}

TEST_F(SessionTurnTest, ABeginWhoseAnswerWasLostIsDiscardedForItMayHaveHappened) {
  for (const grpc::StatusCode code :
       {grpc::StatusCode::UNAVAILABLE, grpc::StatusCode::INTERNAL, grpc::StatusCode::CANCELLED}) {
    AnswerBeginWith(code);
    EXPECT_FALSE(Begin().ok());
  }
  const FakeManager::Calls calls = manager_.calls();
  ASSERT_EQ(calls.ends.size(), 3u);
  for (const v1::EndTurnRequest& end : calls.ends) EXPECT_TRUE(end.discard());
}

TEST_F(SessionTurnTest, ATurnThatRunsHereIsNotBegunTwice) {
  const auto running = running_.TryEnter(SessionId("s"), TurnId("t"));
  EXPECT_EQ(Begin().status().code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(manager_.calls().begins.empty());
  EXPECT_TRUE(manager_.calls().ends.empty());
}

TEST_F(SessionTurnTest, ATurnTakenOverStaysOpenWhenItIsDropped) {
  v1::ResumeRequest resume;
  resume.set_session_id("s");
  resume.set_turn_id("t");
  v1::GetTurnResponse open;
  open.add_history_ids(7);
  {
    const auto turn = SessionTurn::TakeOver(resume, open, &client_,
                                            running_.TryEnter(SessionId("s"), TurnId("t")));
    ASSERT_TRUE(turn.ok()) << turn.status();
    EXPECT_EQ((*turn)->history(), std::vector<int32_t>{7});
  }
  const FakeManager::Calls calls = manager_.calls();
  ASSERT_EQ(calls.begins.size(), 1u);
  EXPECT_TRUE(calls.begins[0].renew());
  EXPECT_TRUE(calls.ends.empty());
}

}  // namespace
}  // namespace kvist::services
