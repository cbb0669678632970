// Two tables: what every turn writes, and the histories, which may have megabytes. Invariant: each
// row of sessions has one of histories, written in the same transaction.
#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cache_manager/turns.h"
#include "common/base/logging.h"
#include "common/base/mutex.h"
#include "common/base/status.h"
#include "services/store/session_store.h"
#include "services/store/sqlite_database.h"

namespace kvist::services {
namespace {

namespace cm = ::kvist::cache_manager;

static_assert(std::endian::native == std::endian::little, "token ids are stored little-endian");

constexpr int64_t kSchemaVersion = 3;
constexpr int64_t kApplicationId = 0x4b565354;  // "KVST"
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

constexpr char kSchema[] = R"sql(
  CREATE TABLE sessions (
    id TEXT PRIMARY KEY NOT NULL, tenant TEXT NOT NULL, model TEXT NOT NULL,
    allocation TEXT NOT NULL, kv_format TEXT NOT NULL, version INTEGER NOT NULL,
    created_ms INTEGER NOT NULL, used_ms INTEGER NOT NULL, ttl_ms INTEGER NOT NULL,
    last_finish INTEGER NOT NULL, last_turn TEXT NOT NULL, turns INTEGER NOT NULL,
    last_answer_tokens INTEGER NOT NULL,
    open_turn TEXT NOT NULL, open_request_id TEXT NOT NULL, open_seed INTEGER NOT NULL,
    open_begun_ms INTEGER NOT NULL, open_expires_ms INTEGER NOT NULL, open_request BLOB NOT NULL,
    window_tokens INTEGER NOT NULL, sink_tokens INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL, history_tokens INTEGER NOT NULL,
    last_answer_text_bytes INTEGER NOT NULL DEFAULT -1,
    offload TEXT NOT NULL DEFAULT '') WITHOUT ROWID;
  CREATE INDEX sessions_by_expiry ON sessions (expires_ms);
  CREATE TABLE histories (id TEXT PRIMARY KEY NOT NULL, tokens BLOB NOT NULL);
)sql";

// A store of version 1 calls one column otherwise and lacks four, one of version 2 lacks the last;
// -1: all of the answer's text.
constexpr char kFromVersion1[] = R"sql(
  ALTER TABLE sessions RENAME COLUMN cache_kind TO allocation;
  ALTER TABLE sessions ADD COLUMN window_tokens INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE sessions ADD COLUMN sink_tokens INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE sessions ADD COLUMN last_answer_text_bytes INTEGER NOT NULL DEFAULT -1;
  ALTER TABLE sessions ADD COLUMN offload TEXT NOT NULL DEFAULT '';
)sql";

constexpr char kFromVersion2[] = R"sql(
  ALTER TABLE sessions ADD COLUMN offload TEXT NOT NULL DEFAULT '';
)sql";

#define KVIST_COLUMNS                                                                             \
  "id, tenant, model, allocation, kv_format, version, created_ms, used_ms, ttl_ms, last_finish, " \
  "last_turn, turns, last_answer_tokens, open_turn, open_request_id, open_seed, open_begun_ms, "  \
  "open_expires_ms, open_request, window_tokens, sink_tokens, expires_ms, history_tokens, "       \
  "last_answer_text_bytes, offload"

constexpr int kHistoryTokensColumn = 22;
constexpr int kAnswerTextBytesColumn = 23;
constexpr int kOffloadColumn = 24;

std::string_view BytesOf(std::span<const int32_t> tokens) {
  return {reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes()};
}

// The moment from which cache_manager::IsExpired holds.
int64_t ExpiryMs(const cm::SessionRecord& record) {
  if (record.time_to_live_ms == 0) return kNever;
  if (record.last_used_wall_ms > kNever - record.time_to_live_ms) return kNever;
  const int64_t expiry = record.last_used_wall_ms + record.time_to_live_ms;
  return record.open_turn.has_value() ? std::max(expiry, record.open_turn->expires_wall_ms)
                                      : expiry;
}

// Binds all columns but history_tokens, the last.
void BindSession(const StoredSession& session, SqliteStatement& statement) {
  const cm::SessionRecord& record = session.record;
  const cm::OpenTurn open = record.open_turn.value_or(cm::OpenTurn());
  statement.BindText(1, record.id.value());
  statement.BindText(2, record.tenant.value());
  statement.BindText(3, record.model);
  statement.BindText(4, record.allocation);
  statement.BindText(5, record.kv_format);
  statement.Bind(6, static_cast<int64_t>(record.version));
  statement.Bind(7, record.created_wall_ms);
  statement.Bind(8, record.last_used_wall_ms);
  statement.Bind(9, record.time_to_live_ms);
  statement.Bind(10, static_cast<int64_t>(record.last_finish));
  statement.BindText(11, record.last_turn.value());
  statement.Bind(12, session.turns);
  statement.Bind(13, static_cast<int64_t>(session.last_answer_tokens));
  statement.BindText(14, open.id.value());
  statement.BindText(15, open.request.value());
  statement.Bind(16, static_cast<int64_t>(open.seed));
  statement.Bind(17, open.begun_wall_ms);
  statement.Bind(18, open.expires_wall_ms);
  statement.BindBlob(19, session.open_request);
  statement.Bind(20, record.attention.window_tokens);
  statement.Bind(21, record.attention.sink_tokens);
  statement.Bind(22, ExpiryMs(record));
  statement.Bind(24, session.last_answer_text_bytes.value_or(-1));
  statement.BindText(kOffloadColumn + 1, record.offload);
}

StoredSession ReadSession(const SqliteStatement& row) {
  StoredSession session;
  cm::SessionRecord& record = session.record;
  record.id = SessionId(std::string(row.Bytes(0)));
  record.tenant = TenantId(std::string(row.Bytes(1)));
  record.model = std::string(row.Bytes(2));
  record.allocation = std::string(row.Bytes(3));
  record.kv_format = std::string(row.Bytes(4));
  record.version = static_cast<uint64_t>(row.Int(5));
  record.created_wall_ms = row.Int(6);
  record.last_used_wall_ms = row.Int(7);
  record.time_to_live_ms = row.Int(8);
  record.last_finish = static_cast<cm::TurnFinish>(row.Int(9));
  record.last_turn = TurnId(std::string(row.Bytes(10)));
  session.turns = static_cast<uint32_t>(row.Int(11));
  session.last_answer_tokens = static_cast<uint64_t>(row.Int(12));
  if (!row.Bytes(13).empty()) {
    record.open_turn = cm::OpenTurn{.id = TurnId(std::string(row.Bytes(13))),
                                    .request = RequestId(std::string(row.Bytes(14))),
                                    .seed = static_cast<uint64_t>(row.Int(15)),
                                    .begun_wall_ms = row.Int(16),
                                    .expires_wall_ms = row.Int(17)};
  }
  session.open_request = std::string(row.Bytes(18));
  record.attention = {.window_tokens = row.Int(19), .sink_tokens = row.Int(20)};
  record.offload = std::string(row.Bytes(kOffloadColumn));
  const int64_t text_bytes = row.Int(kAnswerTextBytesColumn);
  if (text_bytes >= 0) session.last_answer_text_bytes = text_bytes;
  return session;
}

// Every statement, prepared once.
struct Statements {
  std::unique_ptr<SqliteStatement> insert, insert_history, select, select_history, select_version,
      update, update_history, erase, erase_history, list, expired, count;

  absl::Status Prepare(SqliteDatabase& database) {
    const std::pair<std::unique_ptr<SqliteStatement>*, const char*> all[] = {
        {&insert, "INSERT INTO sessions (" KVIST_COLUMNS ") VALUES "
                  "(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"},
        {&insert_history, "INSERT INTO histories (id, tokens) VALUES (?, ?)"},
        {&select, "SELECT " KVIST_COLUMNS " FROM sessions WHERE id = ?"},
        {&select_history, "SELECT tokens FROM histories WHERE id = ?"},
        {&select_version, "SELECT version FROM sessions WHERE id = ?"},
        {&update,
         "UPDATE sessions SET (" KVIST_COLUMNS ") = (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,"
         "?13,?14,?15,?16,?17,?18,?19,?20,?21,?22,coalesce(?23,history_tokens),?24,?25) "
         "WHERE id = ?1"},
        {&update_history, "UPDATE histories SET tokens = ?2 WHERE id = ?1"},
        {&erase, "DELETE FROM sessions WHERE id = ?"},
        {&erase_history, "DELETE FROM histories WHERE id = ?"},
        {&list, "SELECT " KVIST_COLUMNS " FROM sessions WHERE id > ? ORDER BY id LIMIT ?"},
        {&expired, "SELECT id FROM sessions WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ?"},
        {&count, "SELECT count(*) FROM sessions"},
    };
    for (const auto& [statement, sql] : all) {
      KVIST_ASSIGN_OR_RETURN(*statement, database.Prepare(sql));
    }
    return absl::OkStatus();
  }
};

absl::Status CheckSession(const StoredSession& session) {
  KVIST_RETURN_IF_ERROR(cm::Validate(session.record));
  if (session.open_request.size() > kMaxOpenRequestBytes) {
    return FieldOutOfRange("request", absl::StrCat("more than ", kMaxOpenRequestBytes, " bytes"));
  }
  return absl::OkStatus();
}

absl::Status NoSession(const SessionId& id) {
  return absl::NotFoundError(absl::StrCat("no session '", id.value(), "'"));
}

class SqliteStore final : public SessionStore {
 public:
  SqliteStore(std::unique_ptr<SqliteDatabase> database, int64_t max_sessions)
      : max_sessions_(max_sessions), database_(std::move(database)) {}

  absl::Status SetUp() ABSL_LOCKS_EXCLUDED(mutex_);

  absl::Status Create(const StoredSession& session) override ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<StoredSession> Get(const SessionId& id, History history) override
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Update(const StoredSession& session, uint64_t expected_version,
                      HistoryWrite history) override ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Delete(const SessionId& id) override ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::vector<Summary>> List(const SessionId& after, size_t limit) override
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<Summary> Summarize(const SessionId& id) override ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::vector<SessionId>> DeleteExpired(int64_t now_wall_ms, size_t limit) override
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<int64_t> Count() override ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    return count_;
  }

 private:
  // Runs `work` in a transaction, which is rolled back unless it returns OK.
  template <typename Work>
  absl::Status Transact(Work work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    KVIST_RETURN_IF_ERROR(database_->Execute("BEGIN IMMEDIATE"));
    absl::Status status = work();
    if (status.ok()) status = database_->Execute("COMMIT");
    // A failed COMMIT may have ended the transaction already; then this one has nothing to do.
    if (!status.ok()) database_->Execute("ROLLBACK").IgnoreError();
    return status;
  }
  absl::StatusOr<Summary> SummarizeLocked(const SessionId& id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckVersion(const SessionId& id, uint64_t expected)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Erases an expired session of the new record's id; whether there was one. ALREADY_EXISTS for one
  // that lives.
  absl::StatusOr<bool> MakeWayLocked(const cm::SessionRecord& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<bool> EraseLocked(const SessionId& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status EmptyLog() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t max_sessions_;
  Mutex mutex_;
  std::unique_ptr<SqliteDatabase> database_ ABSL_GUARDED_BY(mutex_);
  Statements statements_ ABSL_GUARDED_BY(mutex_);  // after the database: closed before it
  int64_t count_ ABSL_GUARDED_BY(mutex_) = 0;
};

absl::Status SqliteStore::SetUp() {
  MutexLock lock(mutex_);
  // Exclusive: two managers over one store would each believe to be the only owner of its sessions.
  KVIST_RETURN_IF_ERROR(database_->Execute(
      "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
      "PRAGMA secure_delete = ON; PRAGMA temp_store = MEMORY; BEGIN IMMEDIATE; COMMIT"));
  KVIST_ASSIGN_OR_RETURN(const int64_t version, database_->QueryInt("PRAGMA user_version"));
  KVIST_ASSIGN_OR_RETURN(const int64_t owner, database_->QueryInt("PRAGMA application_id"));
  KVIST_ASSIGN_OR_RETURN(const int64_t tables,
                         database_->QueryInt("SELECT count(*) FROM sqlite_schema"));
  const bool is_new = tables == 0 && version == 0;
  const bool upgrades = owner == kApplicationId && (version == 1 || version == 2);
  if (is_new || upgrades) {
    const char* const sql = is_new ? kSchema : version == 1 ? kFromVersion1 : kFromVersion2;
    KVIST_RETURN_IF_ERROR(Transact([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
      return database_->Execute(absl::StrCat(sql, "PRAGMA user_version = ", kSchemaVersion,
                                             "; PRAGMA application_id = ", kApplicationId)
                                    .c_str());
    }));
  } else if (owner != kApplicationId || version != kSchemaVersion) {
    return absl::DataLossError(
        absl::StrCat("not of this program, or of version ", version, " and not ", kSchemaVersion));
  }
  KVIST_ASSIGN_OR_RETURN(
      const int64_t damage,
      database_->QueryInt("SELECT quick_check <> 'ok' FROM pragma_quick_check(1)"));
  if (damage != 0) return absl::DataLossError("damaged");
  KVIST_RETURN_IF_ERROR(statements_.Prepare(*database_));
  KVIST_ASSIGN_OR_RETURN(count_, database_->QueryInt("SELECT count(*) FROM sessions"));
  return absl::OkStatus();
}

absl::Status SqliteStore::Create(const StoredSession& session) {
  KVIST_RETURN_IF_ERROR(CheckSession(session));
  MutexLock lock(mutex_);
  bool replaces = false;
  const absl::Status status = Transact([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS -> absl::Status {
    KVIST_ASSIGN_OR_RETURN(replaces, MakeWayLocked(session.record));
    if (!replaces && count_ >= max_sessions_) {
      return WithDetails(absl::ResourceExhaustedError(
                             absl::StrCat("the store holds ", count_, " sessions, its limit")),
                         {.reason = ErrorReason::kOverload});
    }
    BindSession(session, *statements_.insert);
    statements_.insert->Bind(kHistoryTokensColumn + 1,
                             static_cast<int64_t>(session.record.token_ids.size()));
    KVIST_RETURN_IF_ERROR(statements_.insert->Run());
    statements_.insert_history->BindText(1, session.record.id.value());
    statements_.insert_history->BindBlob(2, BytesOf(session.record.token_ids));
    return statements_.insert_history->Run();
  });
  KVIST_RETURN_IF_ERROR(status);
  if (replaces) return EmptyLog();
  ++count_;
  return absl::OkStatus();
}

absl::StatusOr<bool> SqliteStore::MakeWayLocked(const cm::SessionRecord& record) {
  const auto old = SummarizeLocked(record.id);
  if (absl::IsNotFound(old.status())) return false;
  KVIST_RETURN_IF_ERROR(old.status());
  if (cm::IsExpired(old->session.record, record.created_wall_ms)) return EraseLocked(record.id);
  return absl::AlreadyExistsError(absl::StrCat("session '", record.id.value(), "' exists"));
}

absl::StatusOr<SessionStore::Summary> SqliteStore::SummarizeLocked(const SessionId& id) {
  const StatementReset reset(*statements_.select);
  statements_.select->BindText(1, id.value());
  KVIST_ASSIGN_OR_RETURN(const bool row, statements_.select->Step());
  if (!row) return NoSession(id);
  return Summary{ReadSession(*statements_.select), statements_.select->Int(kHistoryTokensColumn)};
}

absl::StatusOr<SessionStore::Summary> SqliteStore::Summarize(const SessionId& id) {
  MutexLock lock(mutex_);
  return SummarizeLocked(id);
}

absl::StatusOr<StoredSession> SqliteStore::Get(const SessionId& id, History history) {
  MutexLock lock(mutex_);
  KVIST_ASSIGN_OR_RETURN(Summary summary, SummarizeLocked(id));
  if (history == History::kSkip) return std::move(summary.session);
  const StatementReset reset(*statements_.select_history);
  statements_.select_history->BindText(1, id.value());
  KVIST_ASSIGN_OR_RETURN(const bool row, statements_.select_history->Step());
  const std::string_view bytes = row ? statements_.select_history->Bytes(0) : std::string_view();
  if (bytes.size() != static_cast<size_t>(summary.history_tokens) * sizeof(int32_t)) {
    LogError("session store {}: a history has {} bytes and not those of {} tokens",
             database_->path(), bytes.size(), summary.history_tokens);
    return absl::DataLossError(
        absl::StrCat("the stored history of session '", id.value(), "' is damaged"));
  }
  summary.session.record.token_ids.resize(static_cast<size_t>(summary.history_tokens));
  if (!bytes.empty()) {
    std::memcpy(summary.session.record.token_ids.data(), bytes.data(), bytes.size());
  }
  return std::move(summary.session);
}

absl::Status SqliteStore::CheckVersion(const SessionId& id, uint64_t expected) {
  const StatementReset reset(*statements_.select_version);
  statements_.select_version->BindText(1, id.value());
  KVIST_ASSIGN_OR_RETURN(const bool row, statements_.select_version->Step());
  if (!row) return NoSession(id);
  const auto stored = static_cast<uint64_t>(statements_.select_version->Int(0));
  if (stored == expected) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat("the session changed; it is at version ", stored));
}

absl::Status SqliteStore::Update(const StoredSession& session, uint64_t expected_version,
                                 HistoryWrite history) {
  KVIST_RETURN_IF_ERROR(CheckSession(session));
  MutexLock lock(mutex_);
  return Transact([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS -> absl::Status {
    KVIST_RETURN_IF_ERROR(CheckVersion(session.record.id, expected_version));
    BindSession(session, *statements_.update);
    if (history == HistoryWrite::kReplace) {  // unbound, the column keeps its value
      statements_.update->Bind(kHistoryTokensColumn + 1,
                               static_cast<int64_t>(session.record.token_ids.size()));
    }
    KVIST_RETURN_IF_ERROR(statements_.update->Run());
    if (history == HistoryWrite::kKeep) return absl::OkStatus();
    statements_.update_history->BindText(1, session.record.id.value());
    statements_.update_history->BindBlob(2, BytesOf(session.record.token_ids));
    return statements_.update_history->Run();
  });
}

absl::StatusOr<bool> SqliteStore::EraseLocked(const SessionId& id) {
  statements_.erase->BindText(1, id.value());
  KVIST_RETURN_IF_ERROR(statements_.erase->Run());
  if (database_->changes() == 0) return false;
  statements_.erase_history->BindText(1, id.value());
  KVIST_RETURN_IF_ERROR(statements_.erase_history->Run());
  return true;
}

// The write-ahead log still has the pages as they were before the deletion.
absl::Status SqliteStore::EmptyLog() {
  return database_->Execute("PRAGMA wal_checkpoint(TRUNCATE)");
}

absl::Status SqliteStore::Delete(const SessionId& id) {
  MutexLock lock(mutex_);
  KVIST_RETURN_IF_ERROR(Transact([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS -> absl::Status {
    KVIST_ASSIGN_OR_RETURN(const bool erased, EraseLocked(id));
    return erased ? absl::OkStatus() : NoSession(id);
  }));
  --count_;
  return EmptyLog();
}

absl::StatusOr<std::vector<SessionStore::Summary>> SqliteStore::List(const SessionId& after,
                                                                     size_t limit) {
  MutexLock lock(mutex_);
  const StatementReset reset(*statements_.list);
  statements_.list->BindText(1, after.value());
  statements_.list->Bind(2, static_cast<int64_t>(std::min(limit, kMaxSessionsPerPage)));
  std::vector<Summary> sessions;
  while (true) {
    KVIST_ASSIGN_OR_RETURN(const bool row, statements_.list->Step());
    if (!row) return sessions;
    sessions.push_back(
        {ReadSession(*statements_.list), statements_.list->Int(kHistoryTokensColumn)});
  }
}

absl::StatusOr<std::vector<SessionId>> SqliteStore::DeleteExpired(int64_t now_wall_ms,
                                                                  size_t limit) {
  MutexLock lock(mutex_);
  std::vector<SessionId> ids;
  const absl::Status status = Transact([&]() ABSL_NO_THREAD_SAFETY_ANALYSIS -> absl::Status {
    {
      const StatementReset reset(*statements_.expired);
      statements_.expired->Bind(1, now_wall_ms);
      statements_.expired->Bind(2, static_cast<int64_t>(limit));
      while (true) {
        KVIST_ASSIGN_OR_RETURN(const bool row, statements_.expired->Step());
        if (!row) break;
        ids.emplace_back(std::string(statements_.expired->Bytes(0)));
      }
    }
    for (const SessionId& id : ids) KVIST_RETURN_IF_ERROR(EraseLocked(id).status());
    return absl::OkStatus();
  });
  KVIST_RETURN_IF_ERROR(status);
  count_ -= static_cast<int64_t>(ids.size());
  if (!ids.empty()) KVIST_RETURN_IF_ERROR(EmptyLog());
  return ids;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SessionStore>> OpenSqliteStore(const SqliteStoreOptions& options) {
  std::string path = ":memory:";
  if (!options.directory.empty()) {
    std::error_code error;
    const bool made = std::filesystem::create_directories(options.directory, error);
    // Conversations are nobody else's business.
    if (made) {
      std::filesystem::permissions(options.directory, std::filesystem::perms::owner_all, error);
    }
    if (error) {
      return Unavailable(ErrorReason::kNoManager,
                         absl::StrCat("session store ", options.directory, ": ", error.message()));
    }
    path = (std::filesystem::path(options.directory) / "sessions.sqlite").string();
  }
  const auto with_path = [&path](const absl::Status& status) {
    return WithDetails(
        absl::Status(status.code(), absl::StrCat("session store ", path, ": ", status.message())),
        DetailsOf(status));
  };
  auto database = SqliteDatabase::Open(path);
  if (!database.ok()) return with_path(database.status());
  auto store = std::make_unique<SqliteStore>(*std::move(database), options.max_sessions);
  if (const absl::Status status = store->SetUp(); !status.ok()) return with_path(status);
  return store;
}

}  // namespace kvist::services
