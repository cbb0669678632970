// One KV block as bytes for a file: the disk tier and session snapshots store blocks in this form.
// No I/O here. Whatever bytes are decoded, the answer is a block whose checksums, tokens and name
// agree, of the model, numerics and pool that were asked for, or a status.
//
// A record is a header of kBlockHeaderBytes and the block's bytes as the backend has them. Numbers
// are little-endian, digests are the first 16 bytes of SHA-256:
//     0  magic "kvistblk"
//     8  u32 version (1)
//    12  u32 layer group
//    16  KV format's name, padded with zeros to 8
//    24  u32 tokens of a full block          28  u32 tokens of this one
//    32  u64 bytes of the block              40  u64 sequence: the writer's order of writing
//    48  digest of the model's fingerprint   64  digest of the numerics id
//    80  key, zero of a partial block        96  key of the parent
//   112  digest of the block's bytes
//   128  i32[128] tokens; zeros behind them up to
//   688  digest of all before it
#ifndef KVIST_WORKER_KV_BLOCK_FILE_H_
#define KVIST_WORKER_KV_BLOCK_FILE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cache_manager/block_key.h"
#include "worker/kernels/kernel_table.h"

namespace kvist::worker {

// The block's bytes are 64-byte aligned where the record is.
inline constexpr size_t kBlockHeaderBytes = 704;
inline constexpr uint32_t kBlockFileVersion = 1;

// What must be equal for a block's bytes to mean the same to reader and writer.
struct BlockFileScope {
  std::string_view model_fingerprint;  // ModelFacts::fingerprint
  std::string_view numerics_id;        // Backend::numerics_id()
  int32_t group = 0;                   // PoolSpec's, as all below
  KvFormat format = KvFormat::kF16;
  int32_t block_tokens = 16;
  int64_t block_bytes = 0;
};

// What a record says of its block.
struct BlockFileEntry {
  cache_manager::BlockKey key;     // empty: a partial last block, which has no name
  cache_manager::BlockKey parent;  // of a first block, the scope's root
  std::vector<int32_t> tokens;     // block_tokens of them, or of a partial block fewer
  uint64_t sequence = 0;           // for the writer's own use

  friend bool operator==(const BlockFileEntry&, const BlockFileEntry&) = default;
};

// The records of one pool. Immutable, so Thread-safe.
class BlockFile {
 public:
  // REQUIRES: 0 <= group, IsBlockSize(block_tokens), 0 < block_bytes.
  explicit BlockFile(const BlockFileScope& scope);

  int32_t block_tokens() const { return block_tokens_; }
  size_t block_bytes() const { return block_bytes_; }
  size_t record_bytes() const { return kBlockHeaderBytes + block_bytes_; }
  // Where a record has its block's bytes. REQUIRES: record.size() == record_bytes().
  std::span<std::byte> BlockOf(std::span<std::byte> record) const;
  std::span<const std::byte> BlockOf(std::span<const std::byte> record) const;

  // Writes the header of a record whose BlockOf is filled already. REQUIRES: record.size() ==
  // record_bytes(); 0 < tokens <= block_tokens, the parent is not empty, and the key is ChildKey of
  // both, or empty of a partial block.
  void Encode(const BlockFileEntry& entry, std::span<std::byte> record) const;

  // What a record's header says; the block's bytes are not looked at. `bytes` may go on behind the
  // header. INVALID_ARGUMENT naming the field: no record of this version, or a block of another
  // model, numerics id or pool. DATA_LOSS naming what is damaged: too short, the header's checksum,
  // tokens or names that contradict each other. What is accepted is what Encode writes, bit by bit.
  absl::StatusOr<BlockFileEntry> DecodeHeader(std::span<const std::byte> bytes) const;
  // As DecodeHeader, of a whole record: DATA_LOSS too if it is not of record_bytes() or the block's
  // bytes do not agree with their checksum.
  absl::StatusOr<BlockFileEntry> Decode(std::span<const std::byte> record) const;

 private:
  using Digest = std::array<uint8_t, 16>;

  static Digest DigestOf(const void* bytes, size_t size);
  absl::Status CheckScope(std::span<const std::byte> header) const;

  Digest model_;
  Digest numerics_;
  uint32_t group_;
  std::array<char, 8> format_{};
  int32_t block_tokens_;
  size_t block_bytes_;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_KV_BLOCK_FILE_H_
