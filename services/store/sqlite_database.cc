#include "services/store/sqlite_database.h"

#include <utility>

#include "common/base/logging.h"
#include "common/base/status.h"

namespace kvist::services {

void SqliteStatement::BindText(int index, std::string_view value) {
  sqlite3_bind_text64(statement_.get(), index, value.data() == nullptr ? "" : value.data(),
                      value.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
}

void SqliteStatement::BindBlob(int index, std::string_view value) {
  sqlite3_bind_blob64(statement_.get(), index, value.data() == nullptr ? "" : value.data(),
                      value.size(), SQLITE_TRANSIENT);
}

absl::StatusOr<bool> SqliteStatement::Step() {
  const int code = sqlite3_step(statement_.get());
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return database_->ErrorFor(code);
}

absl::Status SqliteStatement::Run() {
  const StatementReset reset(*this);
  while (true) {
    KVIST_ASSIGN_OR_RETURN(const bool row, Step());
    if (!row) return absl::OkStatus();
  }
}

void SqliteStatement::Reset() {
  sqlite3_reset(statement_.get());
  sqlite3_clear_bindings(statement_.get());
}

std::string_view SqliteStatement::Bytes(int column) const {
  const void* data = sqlite3_column_blob(statement_.get(), column);
  const int size = sqlite3_column_bytes(statement_.get(), column);
  if (data == nullptr) return {};
  return {static_cast<const char*>(data), static_cast<size_t>(size)};
}

absl::StatusOr<std::unique_ptr<SqliteDatabase>> SqliteDatabase::Open(const std::string& path) {
  std::unique_ptr<SqliteDatabase> database(new SqliteDatabase(path));
  sqlite3* connection = nullptr;
  const int code = sqlite3_open_v2(
      path.c_str(), &connection,
      SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_PRIVATECACHE,
      nullptr);
  database->connection_.reset(connection);
  if (code != SQLITE_OK) return database->ErrorFor(code);
  sqlite3_extended_result_codes(connection, 1);
  return database;
}

absl::Status SqliteDatabase::Execute(const char* sql) {
  const int code = sqlite3_exec(connection_.get(), sql, nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? absl::OkStatus() : ErrorFor(code);
}

absl::StatusOr<int64_t> SqliteDatabase::QueryInt(const char* sql) {
  KVIST_ASSIGN_OR_RETURN(const auto statement, Prepare(sql));
  KVIST_ASSIGN_OR_RETURN(const bool row, statement->Step());
  return row ? statement->Int(0) : 0;
}

absl::StatusOr<std::unique_ptr<SqliteStatement>> SqliteDatabase::Prepare(const char* sql) {
  sqlite3_stmt* statement = nullptr;
  const int code = sqlite3_prepare_v3(connection_.get(), sql, -1, SQLITE_PREPARE_PERSISTENT,
                                      &statement, nullptr);
  if (code != SQLITE_OK) return ErrorFor(code);
  return std::unique_ptr<SqliteStatement>(new SqliteStatement(this, statement));
}

absl::Status SqliteDatabase::ErrorFor(int code) const {
  const int primary = code & 0xff;
  LogError("session store {}: {}", path_, sqlite3_errstr(code));
  if (primary == SQLITE_CORRUPT || primary == SQLITE_NOTADB) {
    return absl::DataLossError("the session store is damaged");
  }
  return Unavailable(ErrorReason::kNoManager, primary == SQLITE_BUSY
                                                  ? "another process uses the session store"
                                                  : "the session store cannot be used now");
}

}  // namespace kvist::services
