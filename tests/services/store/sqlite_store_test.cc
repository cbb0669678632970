// What only a store on disk has: durability, damage, exclusion, erasure.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "services/store/session_store.h"
#include "services/store/sqlite_database.h"

namespace kvist::services {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class SqliteStoreTest : public testing::Test {
 protected:
  SqliteStoreTest()
      : directory_(testing::TempDir() + "sqlite_store_" + std::to_string(getpid())),
        file_(directory_ + "/sessions.sqlite") {
    fs::remove_all(directory_);
  }
  ~SqliteStoreTest() override { fs::remove_all(directory_); }

  std::unique_ptr<SessionStore> Open() {
    auto store = OpenSqliteStore({.directory = directory_});
    EXPECT_TRUE(store.ok()) << store.status();
    return std::move(store).value();
  }
  static StoredSession Session(const std::string& id, size_t tokens) {
    StoredSession session;
    session.record.id = SessionId(id);
    session.record.token_ids.assign(tokens, 0x5a5b5c5d);
    session.record.version = 1;
    return session;
  }
  // Whether any file of the store has the token 0x5a5b5c5d twice in a row.
  bool FilesHaveTokens() const {
    for (const auto& entry : fs::directory_iterator(directory_)) {
      std::ifstream in(entry.path(), std::ios::binary);
      std::stringstream bytes;
      bytes << in.rdbuf();
      if (bytes.str().find("\x5d\x5c\x5b\x5a\x5d\x5c\x5b\x5a") != std::string::npos) return true;
    }
    return false;
  }
  void Overwrite(size_t from, size_t bytes) {
    std::fstream file(file_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(from));
    file << std::string(bytes, '\xee');
  }

  const std::string directory_;
  const std::string file_;
};

TEST_F(SqliteStoreTest, SessionsOutliveTheStore) {
  ASSERT_TRUE(Open()->Create(Session("a", 1000)).ok());
  EXPECT_EQ(Open()->Get(SessionId("a"), History::kRead).value(), Session("a", 1000));
}

TEST_F(SqliteStoreTest, AcknowledgedSessionsOutliveAKilledProcess) {
  const pid_t child = fork();
  if (child == 0) {
    const auto store = OpenSqliteStore({.directory = directory_});
    const bool stored = store.ok() && (*store)->Create(Session("a", 10)).ok();
    _exit(stored ? 0 : 1);  // no destructor runs: as after a kill
  }
  int status = -1;
  waitpid(child, &status, 0);
  ASSERT_EQ(status, 0);
  EXPECT_TRUE(Open()->Get(SessionId("a"), History::kRead).ok());
}

TEST_F(SqliteStoreTest, DeletedTokensAreInNoFile) {
  const auto store = Open();
  ASSERT_TRUE(store->Create(Session("a", 5000)).ok());
  ASSERT_TRUE(FilesHaveTokens());
  ASSERT_TRUE(store->Delete(SessionId("a")).ok());
  EXPECT_FALSE(FilesHaveTokens());
}

TEST_F(SqliteStoreTest, ExpiredTokensAreInNoFile) {
  const auto store = Open();
  StoredSession session = Session("a", 5000);
  session.record.time_to_live_ms = 1;
  ASSERT_TRUE(store->Create(session).ok());
  ASSERT_EQ(store->DeleteExpired(1'000'000, 10)->size(), 1u);
  EXPECT_FALSE(FilesHaveTokens());
}

TEST_F(SqliteStoreTest, ReplacedTokensAreInNoFile) {
  const auto store = Open();
  StoredSession session = Session("a", 5000);
  session.record.time_to_live_ms = 1;
  ASSERT_TRUE(store->Create(session).ok());
  StoredSession next = Session("a", 0);
  next.record.created_wall_ms = 1'000'000;
  ASSERT_TRUE(store->Create(next).ok());
  EXPECT_FALSE(FilesHaveTokens());
}

TEST_F(SqliteStoreTest, ASecondStoreOnTheDirectoryIsRefused) {
  const auto store = Open();
  const auto second = OpenSqliteStore({.directory = directory_});
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(file_));
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("another process"));
}

TEST_F(SqliteStoreTest, DamageIsDataLossAndOnlyOpeningNamesTheFile) {
  for (const size_t from : {size_t{0}, size_t{100}, size_t{4096}, size_t{9000}}) {
    fs::remove_all(directory_);
    ASSERT_TRUE(Open()->Create(Session("a", 5000)).ok());
    Overwrite(from, 3000);
    const auto damaged = OpenSqliteStore({.directory = directory_});
    absl::Status status = damaged.status();
    const bool opened = status.ok();
    if (opened) status = (*damaged)->Get(SessionId("a"), History::kRead).status();
    if (from == 9000 && status.ok())
      continue;  // inside the tokens' own bytes: SQLite has no checksums
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << from << ": " << status;
    EXPECT_EQ(std::string(status.message()).find(file_) == std::string::npos, opened) << status;
  }
}

TEST_F(SqliteStoreTest, OtherDatabasesAndVersionsAreLeftAlone) {
  fs::create_directories(directory_);
  {
    const auto other = SqliteDatabase::Open(file_);
    ASSERT_TRUE((*other)->Execute("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)").ok());
  }
  EXPECT_EQ(OpenSqliteStore({.directory = directory_}).status().code(), StatusCode::kDataLoss);
  {
    const auto other = SqliteDatabase::Open(file_);
    EXPECT_EQ((*other)->QueryInt("SELECT count(*) FROM theirs").value(), 1);
  }
  fs::remove_all(directory_);
  ASSERT_NE(Open(), nullptr);
  {
    const auto newer = SqliteDatabase::Open(file_);
    ASSERT_TRUE((*newer)->Execute("PRAGMA user_version = 4").ok());
  }
  EXPECT_EQ(OpenSqliteStore({.directory = directory_}).status().code(), StatusCode::kDataLoss);
}

TEST_F(SqliteStoreTest, StoresOfOlderVersionsAreTakenOver) {
  ASSERT_TRUE(Open()->Create(Session("a", 50)).ok());
  for (const char* const undo : {"ALTER TABLE sessions DROP COLUMN offload;"
                                 "ALTER TABLE sessions DROP COLUMN last_answer_text_bytes;"
                                 "ALTER TABLE sessions DROP COLUMN window_tokens;"
                                 "ALTER TABLE sessions DROP COLUMN sink_tokens;"
                                 "ALTER TABLE sessions RENAME COLUMN allocation TO cache_kind;"
                                 "PRAGMA user_version = 1",
                                 "ALTER TABLE sessions DROP COLUMN offload;"
                                 "PRAGMA user_version = 2"}) {
    {
      const auto old = SqliteDatabase::Open(file_);
      ASSERT_TRUE((*old)->Execute(undo).ok());
    }
    for (int i = 0; i < 2; ++i) {
      const auto store = Open();
      ASSERT_NE(store, nullptr);
      const auto session = store->Get(SessionId("a"), History::kRead);
      ASSERT_TRUE(session.ok()) << session.status();
      EXPECT_EQ(*session, Session("a", 50));
    }
  }
}

TEST_F(SqliteStoreTest, ADirectoryThatCannotBeUsedIsNamed) {
  const auto store = OpenSqliteStore({.directory = "/proc/nobody/here"});
  ASSERT_FALSE(store.ok());
  EXPECT_THAT(std::string(store.status().message()), HasSubstr("/proc/nobody/here"));
}

TEST_F(SqliteStoreTest, TheDirectoryIsTheOwnersAlone) {
  const auto store = Open();
  EXPECT_EQ(fs::status(directory_).permissions(), fs::perms::owner_all);
}

}  // namespace
}  // namespace kvist::services
