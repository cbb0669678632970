// The contract of SessionStore, run over every implementation: a new one is a row at the end.
#include "services/store/session_store.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache_manager/limits.h"

namespace kvist::services {
namespace {

using absl::StatusCode;
namespace cm = ::kvist::cache_manager;

struct Implementation {
  const char* name;
  bool durable;
  std::function<absl::StatusOr<std::unique_ptr<SessionStore>>(const std::string& directory,
                                                              int64_t max_sessions)>
      open;
};

class SessionStoreTest : public testing::TestWithParam<Implementation> {
 protected:
  SessionStoreTest() {
    std::string name = testing::UnitTest::GetInstance()->current_test_info()->name();
    std::replace(name.begin(), name.end(), '/', '_');
    directory_ = testing::TempDir() + "store_" + std::to_string(getpid()) + "_" + name;
    std::filesystem::remove_all(directory_);
    Open();
  }
  ~SessionStoreTest() override {
    store_.reset();
    std::filesystem::remove_all(directory_);
  }
  void Open(int64_t max_sessions = 1000) {
    store_.reset();
    auto store = GetParam().open(directory_, max_sessions);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = std::move(store).value();
  }
  static StoredSession Session(const std::string& id, std::vector<int32_t> tokens = {}) {
    StoredSession session;
    session.record.id = SessionId(id);
    session.record.tenant = TenantId("tenant");
    session.record.model = "fingerprint";
    session.record.token_ids = std::move(tokens);
    session.record.version = 1;
    session.record.created_wall_ms = 1000;
    session.record.last_used_wall_ms = 2000;
    return session;
  }

  std::string directory_;
  std::unique_ptr<SessionStore> store_;
};

TEST_P(SessionStoreTest, ReturnsWhatWasStoredFieldByField) {
  StoredSession session = Session("a.B_-9", {0, 1, 2147483647});
  session.record.allocation = "none";
  session.record.attention = {.window_tokens = 64, .sink_tokens = 4};
  session.record.kv_format = "f32";
  session.record.offload = "disk";
  session.record.version = 0xffffffffffffffff;
  session.record.time_to_live_ms = 5;
  session.record.last_finish = cm::TurnFinish::kDeadline;
  session.record.last_turn = TurnId("t0");
  session.record.open_turn = cm::OpenTurn{.id = TurnId("t1"),
                                          .request = RequestId("r1"),
                                          .seed = 0xfffffffffffffff0,
                                          .begun_wall_ms = 7,
                                          .expires_wall_ms = 8};
  session.turns = 3;
  session.last_answer_tokens = 2;
  session.last_answer_text_bytes = 0;
  session.open_request = std::string("\0\xff bytes", 8);
  ASSERT_TRUE(store_->Create(session).ok());
  const auto got = store_->Get(session.record.id, History::kRead);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(*got, session);
  const auto without = store_->Get(session.record.id, History::kSkip);
  ASSERT_TRUE(without.ok());
  EXPECT_TRUE(without->record.token_ids.empty());
  EXPECT_EQ(store_->Summarize(session.record.id)->history_tokens, 3);
}

TEST_P(SessionStoreTest, CreateRefusesATakenIdAndKeepsTheOldOne) {
  ASSERT_TRUE(store_->Create(Session("a", {1})).ok());
  EXPECT_EQ(store_->Create(Session("a", {2})).code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(store_->Get(SessionId("a"), History::kRead)->record.token_ids, std::vector<int32_t>{1});
  EXPECT_EQ(store_->Count().value(), 1);
}

TEST_P(SessionStoreTest, CreateReplacesAnExpiredSessionWhole) {
  Open(/*max_sessions=*/1);  // a replacement needs no room
  StoredSession old = Session("a", {1, 2, 3});
  old.record.time_to_live_ms = 100;  // last used at 2000
  ASSERT_TRUE(store_->Create(old).ok());
  StoredSession next = Session("a", {9});
  next.record.created_wall_ms = 2099;
  EXPECT_EQ(store_->Create(next).code(), StatusCode::kAlreadyExists);
  next.record.created_wall_ms = 2100;
  ASSERT_TRUE(store_->Create(next).ok());
  EXPECT_EQ(store_->Get(SessionId("a"), History::kRead).value(), next);
  EXPECT_EQ(store_->Count().value(), 1);
}

TEST_P(SessionStoreTest, CreateSparesAnExpiredSessionWithAnOpenTurn) {
  StoredSession old = Session("a");
  old.record.time_to_live_ms = 100;
  old.record.open_turn =
      cm::OpenTurn{.id = TurnId("t"), .request = RequestId("r"), .expires_wall_ms = 5000};
  ASSERT_TRUE(store_->Create(old).ok());
  StoredSession next = Session("a");
  next.record.created_wall_ms = 4999;
  EXPECT_EQ(store_->Create(next).code(), StatusCode::kAlreadyExists);
  next.record.created_wall_ms = 5000;
  EXPECT_TRUE(store_->Create(next).ok());
}

TEST_P(SessionStoreTest, UnknownSessionsAreNotFound) {
  EXPECT_EQ(store_->Get(SessionId("x"), History::kRead).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(store_->Summarize(SessionId("x")).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(store_->Update(Session("x"), 1, HistoryWrite::kKeep).code(), StatusCode::kNotFound);
  EXPECT_EQ(store_->Delete(SessionId("x")).code(), StatusCode::kNotFound);
}

TEST_P(SessionStoreTest, UpdateIsACompareAndSetByVersion) {
  StoredSession session = Session("a", {1, 2});
  ASSERT_TRUE(store_->Create(session).ok());
  session.record.version = 2;
  session.record.token_ids = {9};
  EXPECT_EQ(store_->Update(session, 7, HistoryWrite::kReplace).code(), StatusCode::kAborted);
  EXPECT_EQ(store_->Get(SessionId("a"), History::kRead)->record.version, 1u);
  ASSERT_TRUE(store_->Update(session, 1, HistoryWrite::kReplace).ok());
  EXPECT_EQ(store_->Get(SessionId("a"), History::kRead).value(), session);
  EXPECT_EQ(store_->Update(session, 1, HistoryWrite::kReplace).code(), StatusCode::kAborted);
}

TEST_P(SessionStoreTest, KeepLeavesTheHistoryAndItsLength) {
  StoredSession session = Session("a", {1, 2});
  ASSERT_TRUE(store_->Create(session).ok());
  session.record.token_ids.clear();
  session.record.version = 2;
  session.record.model = "other";
  ASSERT_TRUE(store_->Update(session, 1, HistoryWrite::kKeep).ok());
  const auto got = store_->Get(SessionId("a"), History::kRead);
  EXPECT_EQ(got->record.token_ids, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(got->record.model, "other");
  EXPECT_EQ(store_->Summarize(SessionId("a"))->history_tokens, 2);
}

TEST_P(SessionStoreTest, OfManyRacingUpdatesOneWins) {
  ASSERT_TRUE(store_->Create(Session("a")).ok());
  std::atomic<int> won{0}, aborted{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      StoredSession mine = Session("a", {i});
      mine.record.version = 2;
      const absl::Status status = store_->Update(mine, 1, HistoryWrite::kReplace);
      (status.ok() ? won : aborted) += 1;
      EXPECT_TRUE(status.ok() || absl::IsAborted(status)) << status;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(won, 1);
  EXPECT_EQ(aborted, 7);
}

TEST_P(SessionStoreTest, ListPagesInTheOrderOfIds) {
  for (const char* id : {"c", "a", "e", "b", "d"})
    ASSERT_TRUE(store_->Create(Session(id, {1})).ok());
  std::string seen;
  SessionId after;
  while (true) {
    const auto page = store_->List(after, 2);
    ASSERT_TRUE(page.ok());
    if (page->empty()) break;
    EXPECT_LE(page->size(), 2u);
    for (const auto& summary : *page) {
      seen += summary.session.record.id.value();
      EXPECT_EQ(summary.history_tokens, 1);
    }
    after = page->back().session.record.id;
  }
  EXPECT_EQ(seen, "abcde");
}

TEST_P(SessionStoreTest, ExpiryFollowsTheLastUseAndSparesOpenTurns) {
  StoredSession kept = Session("kept"), expiring = Session("expiring"), open = Session("open");
  expiring.record.time_to_live_ms = 100;
  open.record.time_to_live_ms = 100;
  open.record.open_turn =
      cm::OpenTurn{.id = TurnId("t"), .request = RequestId("r"), .expires_wall_ms = 5000};
  for (const auto& session : {kept, expiring, open}) ASSERT_TRUE(store_->Create(session).ok());
  EXPECT_TRUE(store_->DeleteExpired(2099, 10)->empty());
  EXPECT_EQ(store_->DeleteExpired(2100, 10).value(), std::vector<SessionId>{SessionId("expiring")});
  EXPECT_TRUE(store_->DeleteExpired(4999, 10)->empty());
  EXPECT_EQ(store_->DeleteExpired(5000, 10).value(), std::vector<SessionId>{SessionId("open")});
  EXPECT_TRUE(store_->DeleteExpired(INT64_MAX - 1, 10)->empty());
  EXPECT_EQ(store_->Count().value(), 1);
  EXPECT_EQ(store_->Get(SessionId("expiring"), History::kRead).status().code(),
            StatusCode::kNotFound);
}

TEST_P(SessionStoreTest, ExpiryStopsAtItsLimit) {
  for (int i = 0; i < 5; ++i) {
    StoredSession session = Session(absl::StrCat("s", i));
    session.record.time_to_live_ms = 1;
    ASSERT_TRUE(store_->Create(session).ok());
  }
  EXPECT_EQ(store_->DeleteExpired(9999, 3)->size(), 3u);
  EXPECT_EQ(store_->DeleteExpired(9999, 3)->size(), 2u);
}

TEST_P(SessionStoreTest, LimitsAreKept) {
  Open(/*max_sessions=*/2);
  ASSERT_TRUE(store_->Create(Session("a")).ok());
  ASSERT_TRUE(store_->Create(Session("b")).ok());
  EXPECT_EQ(store_->Create(Session("c")).code(), StatusCode::kResourceExhausted);
  ASSERT_TRUE(store_->Delete(SessionId("a")).ok());
  StoredSession full = Session("c", std::vector<int32_t>(cm::kMaxSessionTokens, 7));
  full.open_request = std::string(kMaxOpenRequestBytes, 'x');
  ASSERT_TRUE(store_->Create(full).ok());
  EXPECT_EQ(store_->Get(SessionId("c"), History::kRead).value(), full);
  full.record.token_ids.push_back(7);
  full.record.version = 2;
  EXPECT_EQ(store_->Update(full, 1, HistoryWrite::kReplace).code(), StatusCode::kOutOfRange);
  full.record.token_ids.pop_back();
  full.open_request.push_back('x');
  EXPECT_EQ(store_->Update(full, 1, HistoryWrite::kReplace).code(), StatusCode::kOutOfRange);
  EXPECT_EQ(store_->Create(Session("")).code(), StatusCode::kInvalidArgument);
}

TEST_P(SessionStoreTest, RandomOperationsAgreeWithAMap) {
  std::map<std::string, StoredSession> model;
  std::mt19937 random(7);
  for (int step = 0; step < 600; ++step) {
    const std::string id = absl::StrCat("s", random() % 12);
    const auto known = model.find(id);
    StoredSession next =
        Session(id, std::vector<int32_t>(random() % 20, static_cast<int32_t>(step)));
    next.record.version = static_cast<uint64_t>(step) + 1;
    switch (random() % 4) {
      case 0:
        EXPECT_EQ(store_->Create(next).ok(), known == model.end());
        if (known == model.end()) model[id] = next;
        break;
      case 1: {
        const bool stale = random() % 3 == 0;
        const uint64_t version = (known == model.end() ? 0 : known->second.record.version) + stale;
        const bool ok = store_->Update(next, version, HistoryWrite::kReplace).ok();
        EXPECT_EQ(ok, known != model.end() && !stale);
        if (ok) known->second = next;
        break;
      }
      case 2:
        EXPECT_EQ(store_->Delete(SessionId(id)).ok(), known != model.end());
        model.erase(id);
        break;
      default:
        const auto got = store_->Get(SessionId(id), History::kRead);
        ASSERT_EQ(got.ok(), known != model.end());
        if (got.ok()) {
          EXPECT_EQ(*got, known->second);
        }
    }
    ASSERT_EQ(store_->Count().value(), static_cast<int64_t>(model.size()));
  }
  if (GetParam().durable) Open();
  const auto all = store_->List(SessionId(), 100);
  ASSERT_EQ(all->size(), GetParam().durable ? model.size() : all->size());
}

INSTANTIATE_TEST_SUITE_P(
    Implementations, SessionStoreTest,
    testing::Values(Implementation{"SqliteOnDisk", true,
                                   [](const std::string& directory, int64_t max_sessions) {
                                     return OpenSqliteStore({directory, max_sessions});
                                   }},
                    Implementation{"SqliteInMemory", false,
                                   [](const std::string&, int64_t max_sessions) {
                                     return OpenSqliteStore({"", max_sessions});
                                   }}),
    [](const auto& row) { return row.param.name; });

}  // namespace
}  // namespace kvist::services
