#include "services/cache_manager/turn_book.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache_manager/limits.h"
#include "common/base/status.h"
#include "services/cache_manager/limits.h"

namespace kvist::services {
namespace {

using absl::StatusCode;

// Wall time that a test moves.
class StepClock final : public Clock {
 public:
  MonotonicTime Now() const override { return MonotonicTime(std::chrono::milliseconds(ms)); }
  std::chrono::system_clock::time_point WallNow() const override {
    return std::chrono::system_clock::time_point(std::chrono::milliseconds(ms));
  }
  std::atomic<int64_t> ms{1'000'000};
};

class TurnBookTest : public testing::Test {
 protected:
  TurnBookTest() : metrics_(registry_) {
    store_ = *OpenSqliteStore({});
    book_ = std::make_unique<TurnBook>(store_.get(), &clock_, &metrics_);
  }
  absl::Status CreateSession(const std::string& id, int64_t ttl_seconds = 1000) {
    v1::CreateSessionRequest request;
    request.set_id(id);
    request.set_ttl_seconds(ttl_seconds);
    return book_->Create(request).status();
  }
  absl::StatusOr<v1::BeginTurnResponse> Begin(const std::string& turn,
                                              const std::string& model = "m") {
    v1::BeginTurnRequest request;
    request.set_session_id("s");
    request.set_turn_id(turn);
    request.set_request_id(absl::StrCat("r-", turn));
    request.set_request(absl::StrCat("replay of ", turn));
    request.set_seed(0xffffffffffffffff);
    request.set_model_fingerprint(model);
    return book_->BeginTurn(request);
  }
  v1::EndTurnRequest EndRequest(const std::string& turn, const std::vector<int32_t>& ids,
                                int64_t prompt) {
    v1::EndTurnRequest request;
    request.set_session_id("s");
    request.set_turn_id(turn);
    request.mutable_appended_ids()->Add(ids.begin(), ids.end());
    request.set_prompt_ids(prompt);
    request.set_reason(v1::STOP);
    return request;
  }
  absl::StatusOr<v1::EndTurnResponse> End(const std::string& turn, const std::vector<int32_t>& ids,
                                          int64_t prompt) {
    return book_->EndTurn(EndRequest(turn, ids, prompt));
  }
  v1::Session Session() {
    v1::GetSessionRequest request;
    request.set_id("s");
    request.set_include_history(true);
    const auto session = book_->Get(request);
    EXPECT_TRUE(session.ok()) << session.status();
    return session.ok() ? *session : v1::Session();
  }
  absl::StatusOr<v1::GetTurnResponse> Turn(const std::string& turn) {
    v1::GetTurnRequest request;
    request.set_session_id("s");
    request.set_turn_id(turn);
    return book_->GetTurn(request);
  }
  static std::vector<int32_t> Ids(const google::protobuf::RepeatedField<int32_t>& ids) {
    return {ids.begin(), ids.end()};
  }

  StepClock clock_;
  prometheus::Registry registry_;
  ManagerMetrics metrics_;
  std::unique_ptr<SessionStore> store_;
  std::unique_ptr<TurnBook> book_;
};

TEST_F(TurnBookTest, TurnsAppendToTheHistory) {
  ASSERT_TRUE(CreateSession("s").ok());
  const auto first = Begin("t1");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->history_ids_size(), 0);
  EXPECT_EQ(Session().open_turn_id(), "t1");
  const auto ended = End("t1", {1, 2, 3, 4}, 2);
  ASSERT_TRUE(ended.ok()) << ended.status();
  EXPECT_EQ(Session().history_tokens(), 4);
  EXPECT_EQ(ended->version(), Session().version());
  const auto second = Begin("t2");
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(Ids(second->history_ids()), (std::vector<int32_t>{1, 2, 3, 4}));
  ASSERT_TRUE(End("t2", {5}, 1).ok());
  const v1::Session session = Session();
  EXPECT_EQ(Ids(session.history_ids()), (std::vector<int32_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(session.turns(), 2u);
  EXPECT_EQ(session.model_fingerprint(), "m");
  EXPECT_EQ(session.open_turn_id(), "");
}

TEST_F(TurnBookTest, ASecondTurnAtOnceIsAborted) {
  ASSERT_TRUE(CreateSession("s").ok());
  ASSERT_TRUE(Begin("t1").ok());
  EXPECT_EQ(Begin("t2").status().code(), StatusCode::kAborted);
  EXPECT_EQ(End("t2", {1}, 1).status().code(), StatusCode::kAborted);
  ASSERT_TRUE(End("t1", {1}, 1).ok());
  EXPECT_TRUE(Begin("t2").ok());
}

TEST_F(TurnBookTest, OfManyThreadsOneOpensTheTurn) {
  ASSERT_TRUE(CreateSession("s").ok());
  std::atomic<int> opened{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      const auto begun = Begin(absl::StrCat("t", i));
      opened += begun.ok();
      EXPECT_TRUE(begun.ok() || absl::IsAborted(begun.status())) << begun.status();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(opened, 1);
}

TEST_F(TurnBookTest, RetriesOfBeginAndEndChangeNothingTwice) {
  ASSERT_TRUE(CreateSession("s").ok());
  ASSERT_TRUE(Begin("t1").ok());
  ASSERT_TRUE(Begin("t1").ok());
  const auto first = End("t1", {1, 2}, 1);
  const auto again = End("t1", {1, 2}, 1);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(first->version(), again->version());
  EXPECT_EQ(Session().history_tokens(), 2);
  EXPECT_EQ(Session().turns(), 1u);
}

TEST_F(TurnBookTest, AnEndedTurnIsNotEndedAgainWithOtherTokens) {
  ASSERT_TRUE(CreateSession("s").ok());
  ASSERT_TRUE(Begin("t1").ok());
  ASSERT_TRUE(End("t1", {1, 2, 3}, 1).ok());
  EXPECT_EQ(End("t1", {1, 2, 4}, 1).status().code(), StatusCode::kAborted);
  EXPECT_EQ(End("t1", {0, 1, 2, 3}, 1).status().code(), StatusCode::kAborted);
  EXPECT_TRUE(End("t1", {1, 2, 3}, 1).ok());
}

TEST_F(TurnBookTest, ARenewalKeepsAnOpenTurnAndOpensNone) {
  ASSERT_TRUE(CreateSession("s").ok());
  v1::BeginTurnRequest renewal;
  renewal.set_session_id("s");
  renewal.set_turn_id("t1");
  renewal.set_renew(true);
  EXPECT_EQ(book_->BeginTurn(renewal).status().code(), StatusCode::kAborted);
  ASSERT_TRUE(Begin("t1").ok());
  clock_.ms += kDefaultTurnLeaseMs - 1;
  ASSERT_TRUE(book_->BeginTurn(renewal).ok());
  clock_.ms += kDefaultTurnLeaseMs - 1;
  EXPECT_EQ(Begin("t2").status().code(), StatusCode::kAborted);
  EXPECT_EQ(Turn("t1")->request(), "replay of t1");
  ASSERT_TRUE(End("t1", {1}, 1).ok());
  EXPECT_EQ(book_->BeginTurn(renewal).status().code(), StatusCode::kAborted);
  EXPECT_EQ(Session().open_turn_id(), "");
}

TEST_F(TurnBookTest, ATurnThatFailedTiesAnEmptySessionToNoModel) {
  ASSERT_TRUE(CreateSession("s").ok());
  ASSERT_TRUE(Begin("t1").ok());
  v1::EndTurnRequest discard = EndRequest("t1", {}, 0);
  discard.set_discard(true);
  ASSERT_TRUE(book_->EndTurn(discard).ok());
  EXPECT_EQ(Session().model_fingerprint(), "");
  ASSERT_TRUE(Begin("t2", "other").ok());
  clock_.ms += kDefaultTurnLeaseMs;  // nobody ended it
  EXPECT_TRUE(Begin("t3").ok());
}

TEST_F(TurnBookTest, ADiscardedTurnLeavesNoTrace) {
  ASSERT_TRUE(CreateSession("s").ok());
  ASSERT_TRUE(Begin("t1").ok());
  v1::EndTurnRequest discard = EndRequest("t1", {}, 0);
  discard.set_discard(true);
  ASSERT_TRUE(book_->EndTurn(discard).ok());
  EXPECT_EQ(Session().open_turn_id(), "");
  EXPECT_EQ(Session().turns(), 0u);
  EXPECT_EQ(book_->EndTurn(discard).status().code(), StatusCode::kAborted);
}

TEST_F(TurnBookTest, GetTurnTellsWhatAReplayNeeds) {
  ASSERT_TRUE(CreateSession("s").ok());
  EXPECT_EQ(Turn("").status().code(), StatusCode::kNotFound);
  ASSERT_TRUE(Begin("t1").ok());
  ASSERT_TRUE(End("t1", {1, 2, 3}, 1).ok());
  ASSERT_TRUE(Begin("t2").ok());
  const auto open = Turn("t2");
  ASSERT_TRUE(open.ok());
  EXPECT_TRUE(open->open());
  EXPECT_EQ(open->request(), "replay of t2");
  EXPECT_EQ(open->seed(), 0xffffffffffffffff);
  EXPECT_EQ(open->history_ids_size(), 3);
  EXPECT_TRUE(Turn("")->open());
  const auto ended = Turn("t1");
  ASSERT_TRUE(ended.ok());
  EXPECT_FALSE(ended->open());
  EXPECT_EQ(Ids(ended->generated_ids()), (std::vector<int32_t>{2, 3}));
  EXPECT_EQ(Ids(ended->history_ids()), (std::vector<int32_t>{1}));
  EXPECT_EQ(ended->reason(), v1::STOP);
  EXPECT_EQ(Turn("t0").status().code(), StatusCode::kNotFound);
}

TEST_F(TurnBookTest, AnEndedTurnTellsHowMuchOfItsTextTheClientGot) {
  ASSERT_TRUE(CreateSession("s").ok());
  ASSERT_TRUE(Begin("t1").ok());
  v1::EndTurnRequest end = EndRequest("t1", {1, 2, 3}, 1);
  end.set_answer_text_bytes(-1);
  EXPECT_EQ(book_->EndTurn(end).status().code(), StatusCode::kInvalidArgument);
  end.set_answer_text_bytes(5);
  ASSERT_TRUE(book_->EndTurn(end).ok());
  EXPECT_EQ(Turn("t1")->answer_text_bytes(), 5);
  // Another turn's is its own.
  ASSERT_TRUE(Begin("t2").ok());
  EXPECT_FALSE(Turn("t2")->has_answer_text_bytes());
  ASSERT_TRUE(End("t2", {4, 5}, 1).ok());
  EXPECT_FALSE(Turn("t2")->has_answer_text_bytes());
}

TEST_F(TurnBookTest, ATurnWhoseLeasePassedMakesRoom) {
  ASSERT_TRUE(CreateSession("s").ok());
  ASSERT_TRUE(Begin("t1").ok());
  clock_.ms += kDefaultTurnLeaseMs - 1;
  EXPECT_EQ(Begin("t2").status().code(), StatusCode::kAborted);
  clock_.ms += 1;
  ASSERT_TRUE(Begin("t2").ok());
  EXPECT_EQ(End("t1", {1}, 1).status().code(), StatusCode::kAborted);
  EXPECT_TRUE(End("t2", {1}, 1).ok());
}

TEST_F(TurnBookTest, AnotherModelIsRefusedUntilReset) {
  ASSERT_TRUE(CreateSession("s").ok());
  ASSERT_TRUE(Begin("t1").ok());
  ASSERT_TRUE(End("t1", {1}, 1).ok());
  EXPECT_EQ(Begin("t2", "other").status().code(), StatusCode::kFailedPrecondition);
  v1::ResetSessionRequest reset;
  reset.set_id("s");
  ASSERT_TRUE(book_->Reset(reset).ok());
  EXPECT_TRUE(Begin("t2", "other").ok());
}

TEST_F(TurnBookTest, TruncateCutsByVersionAndNotDuringATurn) {
  ASSERT_TRUE(CreateSession("s").ok());
  ASSERT_TRUE(Begin("t1").ok());
  v1::TruncateSessionRequest cut;
  cut.set_id("s");
  cut.set_keep_first_tokens(2);
  EXPECT_EQ(book_->Truncate(cut).status().code(), StatusCode::kAborted);
  ASSERT_TRUE(End("t1", {1, 2, 3}, 1).ok());
  cut.set_expected_version(Session().version() + 1);
  EXPECT_EQ(book_->Truncate(cut).status().code(), StatusCode::kAborted);
  cut.set_expected_version(Session().version());
  ASSERT_TRUE(book_->Truncate(cut).ok());
  EXPECT_EQ(Ids(Session().history_ids()), (std::vector<int32_t>{1, 2}));
  cut.clear_expected_version();
  cut.set_keep_last_tokens(3);
  EXPECT_EQ(book_->Truncate(cut).status().code(), StatusCode::kOutOfRange);
  cut.set_keep_last_tokens(-1);
  EXPECT_EQ(book_->Truncate(cut).status().code(), StatusCode::kInvalidArgument);
  cut.clear_kept();
  EXPECT_EQ(book_->Truncate(cut).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(TurnBookTest, TruncateKeepsTheLastTokensAndWhatIsLeftOfTheAnswer) {
  ASSERT_TRUE(CreateSession("s").ok());
  ASSERT_TRUE(Begin("t1").ok());
  ASSERT_TRUE(End("t1", {1, 2, 3, 4, 5}, 2).ok());
  v1::TruncateSessionRequest cut;
  cut.set_id("s");
  cut.set_keep_last_tokens(4);
  ASSERT_TRUE(book_->Truncate(cut).ok());
  EXPECT_EQ(Ids(Session().history_ids()), (std::vector<int32_t>{2, 3, 4, 5}));
  v1::GetTurnRequest get;
  get.set_session_id("s");
  EXPECT_EQ(Ids(book_->GetTurn(get)->history_ids()), (std::vector<int32_t>{2}));
  EXPECT_EQ(Ids(book_->GetTurn(get)->generated_ids()), (std::vector<int32_t>{3, 4, 5}));
  cut.set_keep_last_tokens(2);
  ASSERT_TRUE(book_->Truncate(cut).ok());
  EXPECT_EQ(Ids(book_->GetTurn(get)->generated_ids()), (std::vector<int32_t>{4, 5}));
  EXPECT_EQ(book_->GetTurn(get)->history_ids_size(), 0);
}

TEST_F(TurnBookTest, AForkGoesOnFromTheHistoryAndTheOriginalStays) {
  ASSERT_TRUE(CreateSession("s").ok());
  ASSERT_TRUE(Begin("a").ok());
  v1::ForkSessionRequest fork;
  fork.set_id("s");
  fork.set_new_id("f");
  EXPECT_EQ(book_->Fork(fork).status().code(), StatusCode::kAborted);  // a turn is open
  ASSERT_TRUE(End("a", {1, 2, 3, 4}, 2).ok());
  const uint64_t version = Session().version();
  fork.set_expected_version(version + 1);
  EXPECT_EQ(book_->Fork(fork).status().code(), StatusCode::kAborted);
  fork.set_expected_version(version);
  clock_.ms += 5;
  const auto forked = book_->Fork(fork);
  ASSERT_TRUE(forked.ok()) << forked.status();
  EXPECT_EQ(forked->id(), "f");
  EXPECT_EQ(forked->version(), 1u);
  EXPECT_EQ(forked->history_tokens(), 4);
  EXPECT_EQ(forked->turns(), 1u);
  EXPECT_EQ(forked->model_fingerprint(), "m");
  EXPECT_EQ(forked->created_unix_ms(), Session().created_unix_ms() + 5);
  EXPECT_EQ(book_->Fork(fork).status().code(), StatusCode::kAlreadyExists);
  fork.clear_new_id();
  EXPECT_NE(book_->Fork(fork)->id(), "f");  // drawn
  // Each goes its way.
  ASSERT_TRUE(Begin("b").ok());
  ASSERT_TRUE(End("b", {5}, 1).ok());
  v1::GetSessionRequest get;
  get.set_id("f");
  get.set_include_history(true);
  EXPECT_EQ(Ids(book_->Get(get)->history_ids()), (std::vector<int32_t>{1, 2, 3, 4}));
  EXPECT_EQ(Ids(Session().history_ids()), (std::vector<int32_t>{1, 2, 3, 4, 5}));
}

TEST_F(TurnBookTest, AForkOfNobodyIsNotFoundAndBadIdsAreNamed) {
  v1::ForkSessionRequest fork;
  fork.set_id("s");
  EXPECT_EQ(book_->Fork(fork).status().code(), StatusCode::kNotFound);
  ASSERT_TRUE(CreateSession("s").ok());
  fork.set_new_id("../f");
  EXPECT_EQ(DetailsOf(book_->Fork(fork).status()).field, "new_id");
  fork.set_id("");
  EXPECT_EQ(DetailsOf(book_->Fork(fork).status()).field, "id");
  fork.set_id("s");
  fork.set_new_id("s");
  EXPECT_EQ(book_->Fork(fork).status().code(), StatusCode::kAlreadyExists);
}

TEST_F(TurnBookTest, TheCacheOfASessionIsToldToItsTurns) {
  v1::CreateSessionRequest request;
  request.set_id("s");
  request.mutable_cache()->set_allocation(v1::CacheParams::STATIC);
  request.mutable_cache()->mutable_attention()->set_window_tokens(64);
  request.mutable_cache()->mutable_attention()->set_sink_tokens(4);
  request.mutable_cache()->set_kv_format("f32");
  request.mutable_cache()->set_offload(v1::CacheParams::DISK);
  const auto session = book_->Create(request);
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->cache().SerializeAsString(), request.cache().SerializeAsString());
  EXPECT_EQ(Begin("t1")->cache().SerializeAsString(), request.cache().SerializeAsString());
  request.set_id("other");
  request.mutable_cache()->mutable_attention()->set_window_tokens(4);
  EXPECT_EQ(book_->Create(request).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(TurnBookTest, ExpiredSessionsAreNotFoundAndErased) {
  ASSERT_TRUE(CreateSession("s", 10).ok());
  clock_.ms += 9'999;
  EXPECT_TRUE(book_->DeleteExpired().empty());
  EXPECT_EQ(Session().id(), "s");
  clock_.ms += 1;
  EXPECT_EQ(Begin("t1").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(book_->List(v1::ListSessionsRequest())->sessions_size(), 0);
  EXPECT_EQ(book_->DeleteExpired(), std::vector<SessionId>{SessionId("s")});
  EXPECT_EQ(book_->Count().value(), 0);
}

TEST_F(TurnBookTest, ASessionIsGoneOnceItIsErasedAndNotBefore) {
  const auto gone = [&](const char* id) { return book_->IsGone(SessionId(id)).value(); };
  EXPECT_TRUE(gone("s"));
  ASSERT_TRUE(CreateSession("s", 10).ok());
  ASSERT_TRUE(CreateSession("t").ok());
  EXPECT_FALSE(gone("s"));
  clock_.ms += 10'000;
  EXPECT_FALSE(gone("s"));  // expired, and still in the store
  EXPECT_EQ(book_->DeleteExpired().size(), 1u);
  EXPECT_TRUE(gone("s"));
  v1::DeleteSessionRequest deletion;
  deletion.set_id("t");
  ASSERT_TRUE(book_->Delete(deletion).ok());
  EXPECT_TRUE(gone("t"));
}

TEST_F(TurnBookTest, IdOfAnExpiredSessionIsFree) {
  ASSERT_TRUE(CreateSession("s", 10).ok());
  ASSERT_TRUE(Begin("t1").ok());
  ASSERT_TRUE(End("t1", {1, 2}, 1).ok());
  EXPECT_EQ(CreateSession("s").code(), StatusCode::kAlreadyExists);
  clock_.ms += 10'000;
  ASSERT_TRUE(CreateSession("s").ok());
  EXPECT_EQ(Session().history_tokens(), 0);
  EXPECT_TRUE(book_->DeleteExpired().empty());
  EXPECT_EQ(book_->Count().value(), 1);
}

TEST_F(TurnBookTest, ListPages) {
  for (const char* id : {"c", "a", "b"}) ASSERT_TRUE(CreateSession(id).ok());
  v1::ListSessionsRequest request;
  request.set_page_size(2);
  const auto first = book_->List(request);
  ASSERT_EQ(first->sessions_size(), 2);
  EXPECT_EQ(first->sessions(0).id(), "a");
  request.set_page_token(first->next_page_token());
  const auto second = book_->List(request);
  ASSERT_EQ(second->sessions_size(), 1);
  EXPECT_EQ(second->sessions(0).id(), "c");
  EXPECT_EQ(second->next_page_token(), "");
}

TEST_F(TurnBookTest, BadFieldsAreNamed) {
  ASSERT_TRUE(CreateSession("s").ok());
  EXPECT_EQ(CreateSession("a/b").code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(CreateSession(std::string(64, 'x')).code(), StatusCode::kOk);
  EXPECT_EQ(DetailsOf(CreateSession(std::string(65, 'x'))).field, "id");
  EXPECT_EQ(DetailsOf(CreateSession("t", 0)).field, "ttl_seconds");
  EXPECT_EQ(CreateSession("t", kMaxTtlSeconds).code(), StatusCode::kOk);
  EXPECT_EQ(DetailsOf(CreateSession("u", kMaxTtlSeconds + 1)).field, "ttl_seconds");
  EXPECT_EQ(CreateSession("s").code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(DetailsOf(Begin("").status()).field, "turn_id");
  EXPECT_EQ(DetailsOf(Begin("t", "").status()).field, "model_fingerprint");
  ASSERT_TRUE(Begin("t").ok());
  EXPECT_EQ(DetailsOf(End("t", {1}, 2).status()).field, "prompt_ids");
  EXPECT_EQ(DetailsOf(End("t", {1}, -1).status()).field, "prompt_ids");
  EXPECT_EQ(End("t", {-1}, 1).status().code(), StatusCode::kInvalidArgument);
  v1::EndTurnRequest end = EndRequest("t", {1}, 1);
  end.set_reason(static_cast<v1::FinishReason>(77));
  EXPECT_EQ(DetailsOf(book_->EndTurn(end).status()).field, "reason");
  EXPECT_EQ(
      End("t", std::vector<int32_t>(cache_manager::kMaxSessionTokens + 1, 1), 1).status().code(),
      StatusCode::kOutOfRange);
  EXPECT_TRUE(End("t", std::vector<int32_t>(cache_manager::kMaxSessionTokens, 1), 1).ok());
  v1::BeginTurnRequest huge;
  huge.set_session_id("s");
  huge.set_turn_id("t9");
  huge.set_request_id("r");
  huge.set_model_fingerprint("m");
  huge.set_request(std::string(kMaxOpenRequestBytes + 1, 'x'));
  EXPECT_EQ(DetailsOf(book_->BeginTurn(huge).status()).field, "request");
}

TEST_F(TurnBookTest, ARestoredSessionGoesOnWhereItsHistoryEnds) {
  v1::RestoreSessionRequest request;
  request.set_id("s");
  request.set_model_fingerprint("m");
  for (const int32_t id : {3, 4}) request.add_history_ids(id);
  request.set_turns(2);
  request.mutable_cache()->set_allocation(v1::CacheParams::STATIC);
  request.set_ttl_seconds(60);
  const auto restored = book_->Restore(request);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->history_tokens(), 2);
  EXPECT_EQ(restored->turns(), 2u);
  EXPECT_EQ(restored->version(), 1u);
  EXPECT_EQ(restored->expires_unix_ms() - restored->created_unix_ms(), 60'000);
  EXPECT_EQ(book_->Restore(request).status().code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(Begin("a", "another").status().code(), StatusCode::kFailedPrecondition);
  const auto begun = Begin("a").value();
  EXPECT_EQ(begun.history_ids_size(), 2);
  EXPECT_EQ(begun.cache().allocation(), v1::CacheParams::STATIC);
  ASSERT_TRUE(End("a", {5, 6}, 1).ok());
  EXPECT_EQ(Session().history_ids_size(), 4);
  EXPECT_EQ(Session().turns(), 3u);
}

TEST_F(TurnBookTest, WhatCannotBeRestoredIsRefusedWithItsField) {
  v1::RestoreSessionRequest good;
  good.set_id("s");
  good.set_model_fingerprint("m");
  good.add_history_ids(1);
  good.set_ttl_seconds(1);
  const auto field = [&](const std::function<void(v1::RestoreSessionRequest&)>& change) {
    v1::RestoreSessionRequest request = good;
    change(request);
    return DetailsOf(book_->Restore(request).status()).field;
  };
  EXPECT_EQ(field([](auto& r) { r.set_id("a/b"); }), "id");
  EXPECT_EQ(field([](auto& r) { r.clear_id(); }), "id");
  EXPECT_EQ(field([](auto& r) { r.clear_model_fingerprint(); }), "model_fingerprint");
  EXPECT_EQ(field([](auto& r) { r.set_ttl_seconds(0); }), "ttl_seconds");
  EXPECT_EQ(field([](auto& r) { r.set_ttl_seconds(kMaxTtlSeconds + 1); }), "ttl_seconds");
  EXPECT_EQ(field([](auto& r) { r.add_history_ids(-1); }), "token_ids");
  EXPECT_EQ(field([](auto& r) { r.mutable_cache()->mutable_attention()->set_window_tokens(3); }),
            "cache.attention.window_tokens");
  constexpr int kTooMany = static_cast<int>(cache_manager::kMaxSessionTokens) + 1;
  EXPECT_EQ(field([](auto& r) { r.mutable_history_ids()->Resize(kTooMany, 1); }), "token_ids");
  EXPECT_FALSE(book_->Knows(SessionId("s")));
}

}  // namespace
}  // namespace kvist::services
