// A thin layer over SQLite's C interface: statements that reset themselves, errors as absl::Status.
#ifndef KVIST_SERVICES_STORE_SQLITE_DATABASE_H_
#define KVIST_SERVICES_STORE_SQLITE_DATABASE_H_

#include <sqlite3.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvist::services {

class SqliteDatabase;

// A prepared statement. Bind parameters from 1, step, read columns from 0. Single-threaded, as its
// database.
class SqliteStatement {
 public:
  void Bind(int index, int64_t value) { sqlite3_bind_int64(statement_.get(), index, value); }
  // The bytes are copied.
  void BindText(int index, std::string_view value);
  void BindBlob(int index, std::string_view value);

  // True: a row is there. False: done. Errors as SqliteDatabase.
  absl::StatusOr<bool> Step();
  // Steps to the end and resets.
  absl::Status Run();
  // Forgets the row and the parameters.
  void Reset();

  int64_t Int(int column) const { return sqlite3_column_int64(statement_.get(), column); }
  // Text or blob. Valid until the next Step or Reset.
  std::string_view Bytes(int column) const;

 private:
  friend class SqliteDatabase;
  struct Finalize {
    void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
  };
  SqliteStatement(const SqliteDatabase* database, sqlite3_stmt* statement)
      : database_(database), statement_(statement) {}
  const SqliteDatabase* database_;
  std::unique_ptr<sqlite3_stmt, Finalize> statement_;
};

// Resets a statement at the end of a scope. Single-threaded.
class StatementReset {
 public:
  explicit StatementReset(SqliteStatement& statement) : statement_(statement) {}
  ~StatementReset() { statement_.Reset(); }
  StatementReset(const StatementReset&) = delete;
  StatementReset& operator=(const StatementReset&) = delete;

 private:
  SqliteStatement& statement_;
};

// Owns a connection. Errors of all methods: DATA_LOSS if the file is damaged; UNAVAILABLE otherwise
// (disk full, locked by another process, input/output error). The message may go to a client; the
// file and what befell it go to the log. Single-threaded.
class SqliteDatabase {
 public:
  // ":memory:" is a database in memory.
  static absl::StatusOr<std::unique_ptr<SqliteDatabase>> Open(const std::string& path);

  absl::Status Execute(const char* sql);
  // A single number.
  absl::StatusOr<int64_t> QueryInt(const char* sql);
  absl::StatusOr<std::unique_ptr<SqliteStatement>> Prepare(const char* sql);
  // Rows that the last statement changed.
  int64_t changes() const { return sqlite3_changes64(connection_.get()); }
  absl::Status ErrorFor(int code) const;
  const std::string& path() const { return path_; }

 private:
  struct Close {
    void operator()(sqlite3* connection) const { sqlite3_close_v2(connection); }
  };
  explicit SqliteDatabase(std::string path) : path_(std::move(path)) {}
  std::string path_;
  std::unique_ptr<sqlite3, Close> connection_;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_STORE_SQLITE_DATABASE_H_
