// A session as a file: its history and the KV blocks computed for it. No I/O here. Whatever bytes
// are read, the answer is a record within its limits whose checksum agrees, or a status.
//
//     0  magic "kvistses"
//     8  u32 version (1)
//    12  u32 bytes of the record
//    16  u64 bytes of all blocks
//    24  the record (session_file.cc says its fields)
//        the blocks: records of block_file.h by (group, index); `sequence` is the index, the keys
//        are those under SessionFileRoot
//        SHA-256 of all before it
//        HMAC-SHA-256 of that digest: the seal
//
// Numbers are little-endian. The checksum tells damage, the seal who wrote the file: KV bytes are a
// claim about a computation that nobody checks again, so they are believed only of one's own.
#ifndef KVIST_WORKER_KV_SESSION_FILE_H_
#define KVIST_WORKER_KV_SESSION_FILE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cache_manager/attention_span.h"
#include "cache_manager/block_key.h"

namespace kvist::worker {

inline constexpr uint32_t kSessionFileVersion = 1;
inline constexpr size_t kSessionFileFrontBytes = 24;    // before the record
inline constexpr size_t kSessionFileTrailerBytes = 64;  // behind the blocks
// A history of kMaxSessionTokens ids is 4 MiB; names and group lists need some KiB more.
inline constexpr size_t kMaxSessionRecordBytes = (size_t{4} << 20) + (size_t{64} << 10);
// Blocks of one file: 1 TiB, beyond the memory of any worker.
inline constexpr uint64_t kMaxSessionBlocksBytes = uint64_t{1} << 40;

// The blocks of one layer group in a file.
struct SessionFileGroup {
  int64_t block_bytes = 0;
  int64_t blocks = 0;

  friend bool operator==(const SessionFileGroup&, const SessionFileGroup&) = default;
};

// What a file's blocks are.
struct SessionFileBlocks {
  std::string numerics_id;  // of the worker that computed them
  std::string kv_format;    // "f16", ...
  int32_t block_tokens = 16;
  int64_t tokens = 0;                    // of the history's beginning that they stand for
  std::vector<SessionFileGroup> groups;  // by layer group

  int64_t count() const;           // of all groups
  uint64_t records_bytes() const;  // of all their records
  friend bool operator==(const SessionFileBlocks&, const SessionFileBlocks&) = default;
};

// What a file says of its session.
struct SessionFileRecord {
  std::string id;
  std::string model_fingerprint;  // empty: no turn has ended
  std::string model_name;         // for people
  uint32_t turns = 0;
  int64_t time_to_live_ms = 0;
  std::string allocation;  // these four as the session asks for them; empty: the server's default
  std::string kv_format;
  std::string offload;
  cache_manager::AttentionSpan attention;
  std::vector<int32_t> token_ids;
  std::optional<SessionFileBlocks> blocks;

  friend bool operator==(const SessionFileRecord&, const SessionFileRecord&) = default;
};

// INVALID_ARGUMENT or OUT_OF_RANGE naming the field that is beyond a limit.
absl::Status Validate(const SessionFileRecord& record);

// The parent of the first block in a file: nothing of the tenant or the cluster goes into its keys.
cache_manager::BlockKey SessionFileRoot(std::string_view model_fingerprint,
                                        const cache_manager::AttentionSpan& attention,
                                        int32_t block_tokens);

// What the seal is made with: derived from the cluster's secret, for nothing else.
std::string SessionSealKey(std::string_view cluster_secret);

// All before the blocks. REQUIRES: Validate(record) is OK.
std::string EncodeSessionFileHead(const SessionFileRecord& record);
uint64_t SessionFileBytes(const SessionFileRecord& record);

// The running checksum of a file. Thread-compatible.
class SessionFileChecksum {
 public:
  using Digest = std::array<uint8_t, 32>;

  SessionFileChecksum();
  ~SessionFileChecksum();
  SessionFileChecksum(const SessionFileChecksum&) = delete;
  SessionFileChecksum& operator=(const SessionFileChecksum&) = delete;

  void Add(std::span<const std::byte> bytes);
  // Once, after all.
  Digest Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The last kSessionFileTrailerBytes of a file whose other bytes have that digest.
std::string SessionFileTrailer(const SessionFileChecksum::Digest& digest,
                               std::string_view seal_key);

// Reads a file piece by piece, of whatever sizes; holds no more than its head. Thread-compatible.
class SessionFileReader {
 public:
  // Takes the next bytes. INVALID_ARGUMENT naming the field: no session file of this version, or a
  // record that contradicts itself; OUT_OF_RANGE: beyond a limit; DATA_LOSS: bytes behind the end,
  // a checksum that does not agree. After an error nothing more may be added.
  absl::Status Add(std::span<const std::byte> bytes);
  // From the head's end on.
  const std::optional<SessionFileRecord>& record() const { return record_; }
  // Those of the last Add's bytes that belong to the blocks; valid as long as they are.
  std::span<const std::byte> blocks() const { return blocks_; }
  uint64_t file_bytes() const { return end_; }  // 0 before the front is known
  // The file is whole and its checksum agreed. DATA_LOSS: bytes are missing.
  absl::Status Finish() const;
  // REQUIRES: Finish() is OK.
  bool SealedWith(std::string_view seal_key) const;

 private:
  absl::Status TakeFront();
  absl::Status TakeRecord();
  absl::Status TakeTrailer();

  std::string gathered_;  // of the front, the record or the trailer, as far as it came
  std::optional<SessionFileRecord> record_;
  std::span<const std::byte> blocks_;
  SessionFileChecksum checksum_;
  size_t record_bytes_ = 0;
  uint64_t blocks_bytes_ = 0;
  uint64_t offset_ = 0;
  uint64_t end_ = 0;
  bool whole_ = false;
  SessionFileChecksum::Digest digest_{};
  std::string seal_;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_KV_SESSION_FILE_H_
