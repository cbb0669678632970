// Blocks of a session's history on their way out of and into the pools, between steps: what session
// snapshots are made of.
#ifndef KVIST_WORKER_ENGINE_SESSION_COPIES_H_
#define KVIST_WORKER_ENGINE_SESSION_COPIES_H_

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cache_manager/session_table.h"
#include "common/base/ids.h"
#include "worker/backend/backend.h"
#include "worker/engine/live_request.h"

namespace kvist::worker {

// Exports and imports at once: each keeps its blocks from everybody else while it lasts. All of
// them together keep no more than the pools promise (BlockPool::MaxPromised), half of each: nobody
// can preempt them, and what runs must not wait for a slow reader.
inline constexpr size_t kMaxSessionCopies = 4;

// Tokens and all else that their blocks are named by.
struct SessionHistory {
  SessionId session;
  TenantId tenant;
  std::string tenant_salt;  // GenerateRequest::tenant_salt
  CacheOptions cache;
  std::vector<int32_t> tokens;
};

// Where a block stands in a history.
struct BlockPlace {
  int32_t group = 0;  // layer group
  int64_t index = 0;  // from the history's start

  friend auto operator<=>(const BlockPlace&, const BlockPlace&) = default;
};

// Blocks of a history that are in the pools, held there until End.
struct SessionExport {
  uint64_t id = 0;
  KvFormat format = KvFormat::kF16;
  int64_t tokens = 0;              // of the history's beginning that the blocks stand for
  std::vector<BlockPlace> places;  // ascending; an unfilled block is the last of its group
};

// Blocks of a history that will come.
struct SessionImport {
  SessionHistory history;
  int64_t tokens = 0;           // of the history's beginning that they stand for
  std::vector<int64_t> blocks;  // of each layer group
};

// Owns the references of all exports and imports under way; what is not ended ends with it. Nothing
// is named before Commit, and then only by keys computed here from the history. Calls other than
// Begin... and End take time in proportion to what they are given, so that a caller can keep them
// shorter than a step. Single-threaded, as the pools.
class SessionCopies {
 public:
  // REQUIRES: all outlive it.
  SessionCopies(Backend* backend, const std::vector<std::unique_ptr<FormatCache>>* formats,
                cache_manager::SessionTable* sessions);
  ~SessionCopies();

  // Holds the blocks of the longest prefix of the history that a request would find and that may
  // be promised; none for Allocation::kNone. INVALID_ARGUMENT: a format that is not served.
  // RESOURCE_EXHAUSTED (kOverload): kMaxSessionCopies are under way, or others have been promised
  // too much.
  absl::StatusOr<SessionExport> BeginExport(const SessionHistory& history);
  // The bytes of its place number `place`; of an unfilled block the rest is zeros. REQUIRES: the
  // export has not ended; out.size() is PoolSpec::block_bytes.
  void Read(uint64_t id, size_t place, std::span<std::byte> out) const;

  // Has the pools promise the blocks and returns the import's id. INVALID_ARGUMENT naming the
  // field: a format that is not served, tokens beyond the history, more blocks than they have,
  // Allocation::kNone. RESOURCE_EXHAUSTED: so much is never promised, or (kOverload) not now, or as
  // BeginExport; nothing is promised then.
  absl::StatusOr<uint64_t> BeginImport(SessionImport import);
  // Takes a promised block for that place and fills it. INVALID_ARGUMENT naming the field: not
  // behind the place before, beyond the tokens, a hole where every block is needed, or more than
  // were announced. REQUIRES: the import has not ended; bytes.size() is PoolSpec::block_bytes.
  absl::Status Write(uint64_t id, const BlockPlace& place, std::span<const std::byte> bytes);
  // Names the next `max_blocks` of the written blocks. False: there are more. INVALID_ARGUMENT:
  // fewer were written than announced, nothing is named. REQUIRES: the import has not ended.
  absl::StatusOr<bool> Commit(uint64_t id, size_t max_blocks);
  // The session holds the chain of all named blocks from now on, unless it has a chain already.
  // Returns how much of the history a request would find. REQUIRES: Commit returned true.
  int64_t Settle(uint64_t id);

  // Lets go of its blocks: those without a name are free. Nothing happens if it has ended.
  void End(uint64_t id);

  // Adds the blocks that are held in the pool of (format, group).
  void AddHeld(const FormatCache& format, size_t group, std::vector<int32_t>* blocks) const;

 private:
  struct Held;
  struct Copy;
  struct Match;

  absl::StatusOr<FormatCache*> FormatOf(const CacheOptions& cache) const;
  // Of the history's first `limit` tokens.
  Match MatchOf(FormatCache* format, const SessionHistory& history, int64_t limit) const;
  cache_manager::BlockKey RootOf(const FormatCache& format, const SessionHistory& history) const;
  absl::StatusOr<Copy*> Begin(FormatCache* format, uint64_t* id);
  Copy& At(uint64_t id) const;
  int64_t TokensIn(const Copy& copy, int64_t index) const;
  void NameBlock(Copy& copy, size_t held);

  Backend* const backend_;
  const std::vector<std::unique_ptr<FormatCache>>* const formats_;
  cache_manager::SessionTable* const sessions_;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Copy>> copies_;
  uint64_t last_id_ = 0;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_ENGINE_SESSION_COPIES_H_
