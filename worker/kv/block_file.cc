#include "worker/kv/block_file.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status.h"
#include "worker/kv/layout.h"

namespace kvist::worker {
namespace {

using cache_manager::BlockKey;

constexpr char kMagic[8] = {'k', 'v', 'i', 's', 't', 'b', 'l', 'k'};
constexpr size_t kVersionAt = 8;
constexpr size_t kGroupAt = 12;
constexpr size_t kFormatAt = 16;
constexpr size_t kBlockTokensAt = 24;
constexpr size_t kTokensAt = 28;
constexpr size_t kBlockBytesAt = 32;
constexpr size_t kSequenceAt = 40;
constexpr size_t kModelAt = 48;
constexpr size_t kNumericsAt = 64;
constexpr size_t kKeyAt = 80;
constexpr size_t kParentAt = 96;
constexpr size_t kBlockDigestAt = 112;
constexpr size_t kTokenIdsAt = 128;
constexpr size_t kHeaderDigestAt = kBlockHeaderBytes - 16;
static_assert(kTokenIdsAt + 4 * cache_manager::kMaxBlockTokens <= kHeaderDigestAt);

template <typename T>
void Put(std::span<std::byte> bytes, size_t at, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) {
    bytes[at + i] = static_cast<std::byte>(static_cast<uint64_t>(value) >> (8 * i));
  }
}

template <typename T>
T Get(std::span<const std::byte> bytes, size_t at) {
  uint64_t value = 0;
  for (size_t i = sizeof(T); i-- > 0;) value = (value << 8) | static_cast<uint8_t>(bytes[at + i]);
  return static_cast<T>(value);
}

template <size_t N, typename T>
void PutArray(std::span<std::byte> bytes, size_t at, const std::array<T, N>& value) {
  std::memcpy(bytes.data() + at, value.data(), N);
}

template <size_t N, typename T>
bool Equals(std::span<const std::byte> bytes, size_t at, const std::array<T, N>& value) {
  return std::memcmp(bytes.data() + at, value.data(), N) == 0;
}

BlockKey GetKey(std::span<const std::byte> bytes, size_t at) {
  BlockKey key;
  std::memcpy(key.bytes.data(), bytes.data() + at, key.bytes.size());
  return key;
}

absl::Status Damaged(const char* problem) {
  return absl::DataLossError(absl::StrCat("the block's record is damaged: ", problem));
}

absl::Status CheckNumber(const char* field, uint64_t value, uint64_t want) {
  if (value == want) return absl::OkStatus();
  return InvalidField(field,
                      "the block has " + std::to_string(value) + ", not " + std::to_string(want));
}

}  // namespace

BlockFile::Digest BlockFile::DigestOf(const void* bytes, size_t size) {
  static const EVP_MD* const algorithm = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  std::array<uint8_t, EVP_MAX_MD_SIZE> hash;
  KVIST_CHECK(algorithm != nullptr, "OpenSSL has no SHA-256");
  KVIST_CHECK(EVP_Digest(bytes, size, hash.data(), nullptr, algorithm, nullptr) == 1);
  Digest digest;
  std::copy_n(hash.begin(), digest.size(), digest.begin());
  return digest;
}

BlockFile::BlockFile(const BlockFileScope& scope)
    : model_(DigestOf(scope.model_fingerprint.data(), scope.model_fingerprint.size())),
      numerics_(DigestOf(scope.numerics_id.data(), scope.numerics_id.size())),
      group_(static_cast<uint32_t>(scope.group)),
      block_tokens_(scope.block_tokens),
      block_bytes_(static_cast<size_t>(scope.block_bytes)) {
  KVIST_CHECK(scope.group >= 0 && scope.block_bytes > 0);
  KVIST_CHECK(cache_manager::IsBlockSize(scope.block_tokens));
  const std::string_view format = KvFormatName(scope.format);
  KVIST_CHECK(format.size() <= format_.size());
  std::copy(format.begin(), format.end(), format_.begin());
}

std::span<std::byte> BlockFile::BlockOf(std::span<std::byte> record) const {
  KVIST_CHECK(record.size() == record_bytes());
  return record.subspan(kBlockHeaderBytes);
}

std::span<const std::byte> BlockFile::BlockOf(std::span<const std::byte> record) const {
  KVIST_CHECK(record.size() == record_bytes());
  return record.subspan(kBlockHeaderBytes);
}

void BlockFile::Encode(const BlockFileEntry& entry, std::span<std::byte> record) const {
  const std::span<std::byte> block = BlockOf(record);
  KVIST_CHECK(!entry.tokens.empty() && !entry.parent.empty());
  KVIST_CHECK(entry.tokens.size() <= static_cast<size_t>(block_tokens_));
  KVIST_CHECK(entry.key.empty() == (entry.tokens.size() < static_cast<size_t>(block_tokens_)));
  std::fill_n(record.begin(), kBlockHeaderBytes, std::byte{0});
  std::memcpy(record.data(), kMagic, sizeof(kMagic));
  Put(record, kVersionAt, kBlockFileVersion);
  Put(record, kGroupAt, group_);
  PutArray(record, kFormatAt, format_);
  Put(record, kBlockTokensAt, static_cast<uint32_t>(block_tokens_));
  Put(record, kTokensAt, static_cast<uint32_t>(entry.tokens.size()));
  Put(record, kBlockBytesAt, static_cast<uint64_t>(block_bytes_));
  Put(record, kSequenceAt, entry.sequence);
  PutArray(record, kModelAt, model_);
  PutArray(record, kNumericsAt, numerics_);
  PutArray(record, kKeyAt, entry.key.bytes);
  PutArray(record, kParentAt, entry.parent.bytes);
  PutArray(record, kBlockDigestAt, DigestOf(block.data(), block.size()));
  for (size_t i = 0; i < entry.tokens.size(); ++i) {
    Put(record, kTokenIdsAt + 4 * i, static_cast<uint32_t>(entry.tokens[i]));
  }
  PutArray(record, kHeaderDigestAt, DigestOf(record.data(), kHeaderDigestAt));
}

absl::Status BlockFile::CheckScope(std::span<const std::byte> header) const {
  if (!Equals(header, kModelAt, model_)) return InvalidField("model", "the block is of another");
  if (!Equals(header, kNumericsAt, numerics_)) {
    return InvalidField("numerics_id", "the block was computed with another");
  }
  KVIST_RETURN_IF_ERROR(CheckNumber("group", Get<uint32_t>(header, kGroupAt), group_));
  if (!Equals(header, kFormatAt, format_)) {
    return InvalidField("kv_format", "the block is of another");
  }
  KVIST_RETURN_IF_ERROR(CheckNumber("block_tokens", Get<uint32_t>(header, kBlockTokensAt),
                                    static_cast<uint64_t>(block_tokens_)));
  return CheckNumber("block_bytes", Get<uint64_t>(header, kBlockBytesAt), block_bytes_);
}

absl::StatusOr<BlockFileEntry> BlockFile::DecodeHeader(std::span<const std::byte> bytes) const {
  if (bytes.size() < kBlockHeaderBytes) return Damaged("its header is cut off");
  const std::span<const std::byte> header = bytes.first(kBlockHeaderBytes);
  if (std::memcmp(header.data(), kMagic, sizeof(kMagic)) != 0) {
    return InvalidField("magic", "this is no block's record");
  }
  KVIST_RETURN_IF_ERROR(
      CheckNumber("version", Get<uint32_t>(header, kVersionAt), kBlockFileVersion));
  if (!Equals(header, kHeaderDigestAt, DigestOf(header.data(), kHeaderDigestAt))) {
    return Damaged("checksum of the header");
  }
  KVIST_RETURN_IF_ERROR(CheckScope(header));
  const uint32_t tokens = Get<uint32_t>(header, kTokensAt);
  const uint32_t full = static_cast<uint32_t>(block_tokens_);
  if (tokens == 0 || tokens > full) return Damaged("number of tokens");
  BlockFileEntry entry{.key = GetKey(header, kKeyAt),
                       .parent = GetKey(header, kParentAt),
                       .sequence = Get<uint64_t>(header, kSequenceAt)};
  for (uint32_t i = 0; i < tokens; ++i) {
    entry.tokens.push_back(Get<int32_t>(header, kTokenIdsAt + 4 * i));
  }
  const auto padding =
      header.subspan(kTokenIdsAt + 4 * tokens).first(kHeaderDigestAt - kTokenIdsAt - 4 * tokens);
  if (std::any_of(padding.begin(), padding.end(), [](std::byte b) { return b != std::byte{0}; })) {
    return Damaged("bytes behind its tokens");
  }
  if (entry.parent.empty()) return Damaged("it has no parent key");
  const BlockKey key =
      tokens == full ? cache_manager::ChildKey(entry.parent, entry.tokens) : BlockKey();
  if (entry.key != key) return Damaged("its key is not that of its tokens");
  return entry;
}

absl::StatusOr<BlockFileEntry> BlockFile::Decode(std::span<const std::byte> record) const {
  KVIST_ASSIGN_OR_RETURN(BlockFileEntry entry, DecodeHeader(record));
  if (record.size() != record_bytes()) return Damaged("its length");
  const std::span<const std::byte> block = BlockOf(record);
  if (!Equals(record, kBlockDigestAt, DigestOf(block.data(), block.size()))) {
    return Damaged("checksum of the block");
  }
  return entry;
}

}  // namespace kvist::worker
