// The record, in order; a text is its length as u16 and its bytes:
//   text id, model fingerprint, model name; u32 turns; i64 time to live in ms;
//   text allocation, KV format and offload asked for; i64 window, sinks;
//   u32 number of token ids, i32 each;
//   u8 whether there are blocks; if 1: text numerics id, KV format; i32 tokens of a block;
//   i64 tokens that the blocks stand for; u32 number of groups, i64 block bytes and i64 blocks each
#include "worker/kv/session_file.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cache_manager/limits.h"
#include "common/base/check.h"
#include "common/base/int_math.h"
#include "common/base/status.h"
#include "common/text/utf8.h"
#include "worker/kv/block_file.h"

namespace kvist::worker {
namespace {

namespace cm = ::kvist::cache_manager;

constexpr std::string_view kSessionMagic = "kvistses";
constexpr size_t kDigestBytes = 32;

// Numbers and texts behind each other. Single-threaded.
class Writer {
 public:
  template <typename T>
  void Put(T value) {
    for (size_t i = 0; i < sizeof(T); ++i) {
      bytes_.push_back(static_cast<char>(static_cast<uint64_t>(value) >> (8 * i)));
    }
  }
  void PutText(std::string_view text) {
    Put(static_cast<uint16_t>(text.size()));
    bytes_.append(text);
  }
  std::string Take() { return std::move(bytes_); }
  std::string& bytes() { return bytes_; }

 private:
  std::string bytes_;
};

// Reads what Writer wrote. After the first read that fails, `failed` names its field and every
// further read gives nothing. Single-threaded.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  template <typename T>
  T Get(const char* field) {
    if (!Has(field, sizeof(T))) return T{};
    uint64_t value = 0;
    for (size_t i = sizeof(T); i-- > 0;) {
      value = (value << 8) | static_cast<uint8_t>(bytes_[at_ + i]);
    }
    at_ += sizeof(T);
    return static_cast<T>(value);
  }
  std::string GetText(const char* field, size_t max_bytes) {
    const size_t size = Get<uint16_t>(field);
    if (size > max_bytes) Fail(field);
    if (!Has(field, size)) return {};
    std::string text(bytes_.substr(at_, size));
    at_ += size;
    return text;
  }
  // Whether so many bytes are left; else the field fails.
  bool Has(const char* field, size_t size) {
    if (failed_ == nullptr && bytes_.size() - at_ < size) Fail(field);
    return failed_ == nullptr;
  }
  void Fail(const char* field) {
    if (failed_ == nullptr) failed_ = field;
  }
  const char* failed() const { return failed_; }
  bool at_end() const { return at_ == bytes_.size(); }

 private:
  std::string_view bytes_;
  size_t at_ = 0;
  const char* failed_ = nullptr;
};

SessionFileBlocks GetBlocks(Reader& reader) {
  SessionFileBlocks blocks;
  blocks.numerics_id = reader.GetText("blocks.numerics_id", cm::kMaxNameBytes);
  blocks.kv_format = reader.GetText("blocks.kv_format", cm::kMaxIdBytes);
  blocks.block_tokens = reader.Get<int32_t>("blocks.block_tokens");
  blocks.tokens = reader.Get<int64_t>("blocks.tokens");
  const uint32_t groups = reader.Get<uint32_t>("blocks.groups");
  if (groups > cm::kMaxPoolsPerWorker) reader.Fail("blocks.groups");
  for (uint32_t g = 0; g < groups && reader.failed() == nullptr; ++g) {
    SessionFileGroup group;
    group.block_bytes = reader.Get<int64_t>("blocks.groups.block_bytes");
    group.blocks = reader.Get<int64_t>("blocks.groups.blocks");
    blocks.groups.push_back(group);
  }
  return blocks;
}

absl::StatusOr<SessionFileRecord> DecodeRecord(std::string_view bytes) {
  Reader reader(bytes);
  SessionFileRecord record;
  record.id = reader.GetText("session", cm::kMaxIdBytes);
  record.model_fingerprint = reader.GetText("model_fingerprint", cm::kMaxNameBytes);
  record.model_name = reader.GetText("model_name", cm::kMaxNameBytes);
  record.turns = reader.Get<uint32_t>("turns");
  record.time_to_live_ms = reader.Get<int64_t>("time_to_live_ms");
  record.allocation = reader.GetText("cache.allocation", cm::kMaxIdBytes);
  record.kv_format = reader.GetText("cache.kv_format", cm::kMaxIdBytes);
  record.offload = reader.GetText("cache.offload", cm::kMaxIdBytes);
  record.attention.window_tokens = reader.Get<int64_t>("cache.attention.window_tokens");
  record.attention.sink_tokens = reader.Get<int64_t>("cache.attention.sink_tokens");
  const size_t tokens = reader.Get<uint32_t>("token_ids");
  if (reader.Has("token_ids", 4 * tokens)) {
    record.token_ids.reserve(tokens);
    for (size_t i = 0; i < tokens; ++i) record.token_ids.push_back(reader.Get<int32_t>(""));
  }
  const uint8_t has_blocks = reader.Get<uint8_t>("blocks");
  if (has_blocks > 1) reader.Fail("blocks");
  if (has_blocks == 1) record.blocks = GetBlocks(reader);
  if (reader.failed() != nullptr) {
    return InvalidField(reader.failed(), "the session file's record is cut off or too long here");
  }
  if (!reader.at_end()) return InvalidField("record_bytes", "the record ends before them");
  KVIST_RETURN_IF_ERROR(Validate(record));
  return record;
}

// Names go into messages and onto terminals.
absl::Status CheckName(std::string_view field, std::string_view name, size_t max_bytes) {
  if (name.size() > max_bytes) return InvalidField(field, "is too long");
  const bool control = std::any_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
  });
  if (!control && text::IsValidUtf8(name)) return absl::OkStatus();
  return InvalidField(field, "is no plain text");
}

absl::Status ValidateBlocks(const SessionFileBlocks& blocks, int64_t history_tokens) {
  KVIST_RETURN_IF_ERROR(CheckName("blocks.numerics_id", blocks.numerics_id, cm::kMaxNameBytes));
  KVIST_RETURN_IF_ERROR(CheckName("blocks.kv_format", blocks.kv_format, cm::kMaxIdBytes));
  if (!cm::IsBlockSize(blocks.block_tokens)) {
    return InvalidField("blocks.block_tokens", "must be 16, 32, 64 or 128");
  }
  if (blocks.tokens < 1 || blocks.tokens > history_tokens) {
    return InvalidField("blocks.tokens", "are not in the history");
  }
  if (blocks.groups.empty() || blocks.groups.size() > cm::kMaxPoolsPerWorker) {
    return InvalidField("blocks.groups",
                        absl::StrCat("must be 1 to ", cm::kMaxPoolsPerWorker, " groups"));
  }
  const int64_t most = CeilDiv<int64_t>(blocks.tokens, blocks.block_tokens);
  for (const SessionFileGroup& group : blocks.groups) {
    if (group.block_bytes < 1 || group.block_bytes > static_cast<int64_t>(cm::kMaxBytesPerBlock)) {
      return FieldOutOfRange("blocks.groups.block_bytes",
                             absl::StrCat("must be 1 to ", cm::kMaxBytesPerBlock));
    }
    if (group.blocks < 1 || group.blocks > most) {
      return FieldOutOfRange("blocks.groups.blocks",
                             "must be at least 1, and no more than the tokens fill");
    }
  }
  if (blocks.records_bytes() > kMaxSessionBlocksBytes) {
    return FieldOutOfRange("blocks", absl::StrCat("more than ", kMaxSessionBlocksBytes, " bytes"));
  }
  return absl::OkStatus();
}

SessionFileChecksum::Digest SealOf(const SessionFileChecksum::Digest& digest,
                                   std::string_view seal_key) {
  // HMAC-SHA-256 under another name.
  const std::string seal =
      cm::TenantSalt(seal_key, {reinterpret_cast<const char*>(digest.data()), digest.size()});
  SessionFileChecksum::Digest result;
  KVIST_CHECK(seal.size() == result.size());
  std::copy(seal.begin(), seal.end(), result.begin());
  return result;
}

std::string_view Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

int64_t SessionFileBlocks::count() const {
  int64_t count = 0;
  for (const SessionFileGroup& group : groups) count += group.blocks;
  return count;
}

uint64_t SessionFileBlocks::records_bytes() const {
  uint64_t bytes = 0;
  for (const SessionFileGroup& group : groups) {
    bytes += static_cast<uint64_t>(group.blocks) *
             (kBlockHeaderBytes + static_cast<uint64_t>(group.block_bytes));
  }
  return bytes;
}

absl::Status Validate(const SessionFileRecord& record) {
  if (record.id.empty()) return InvalidField("session", "is empty");
  KVIST_RETURN_IF_ERROR(CheckName("session", record.id, cm::kMaxIdBytes));
  KVIST_RETURN_IF_ERROR(
      CheckName("model_fingerprint", record.model_fingerprint, cm::kMaxNameBytes));
  KVIST_RETURN_IF_ERROR(CheckName("model_name", record.model_name, cm::kMaxNameBytes));
  if (record.time_to_live_ms < 0) return InvalidField("time_to_live_ms", "is negative");
  KVIST_RETURN_IF_ERROR(CheckName("cache.allocation", record.allocation, cm::kMaxIdBytes));
  KVIST_RETURN_IF_ERROR(CheckName("cache.kv_format", record.kv_format, cm::kMaxIdBytes));
  KVIST_RETURN_IF_ERROR(CheckName("cache.offload", record.offload, cm::kMaxIdBytes));
  KVIST_RETURN_IF_ERROR(cm::ValidateAttention(record.attention, cm::kMaxWindowTokens));
  if (record.token_ids.size() > cm::kMaxSessionTokens) {
    return FieldOutOfRange("token_ids", absl::StrCat("more than ", cm::kMaxSessionTokens));
  }
  if (std::any_of(record.token_ids.begin(), record.token_ids.end(),
                  [](int32_t id) { return id < 0; })) {
    return InvalidField("token_ids", "has a negative id");
  }
  if (record.model_fingerprint.empty() && !record.token_ids.empty()) {
    return InvalidField("model_fingerprint", "is empty, and there is a history");
  }
  if (!record.blocks.has_value()) return absl::OkStatus();
  return ValidateBlocks(*record.blocks, static_cast<int64_t>(record.token_ids.size()));
}

cm::BlockKey SessionFileRoot(std::string_view model_fingerprint, const cm::AttentionSpan& attention,
                             int32_t block_tokens) {
  return cm::RootKey({.model_fingerprint = std::string(model_fingerprint),
                      .attention = cm::AttentionText(attention),
                      .block_tokens = block_tokens,
                      .tenant_salt = "session file"});
}

std::string SessionSealKey(std::string_view cluster_secret) {
  // No tenant's id has a space in it: no salt of a tenant is this key.
  return cm::TenantSalt(cluster_secret, "session file");
}

std::string EncodeSessionFileHead(const SessionFileRecord& record) {
  KVIST_CHECK(Validate(record).ok(), "a session file's record breaks its limits");
  Writer body;
  body.PutText(record.id);
  body.PutText(record.model_fingerprint);
  body.PutText(record.model_name);
  body.Put(record.turns);
  body.Put(record.time_to_live_ms);
  body.PutText(record.allocation);
  body.PutText(record.kv_format);
  body.PutText(record.offload);
  body.Put(record.attention.window_tokens);
  body.Put(record.attention.sink_tokens);
  body.Put(static_cast<uint32_t>(record.token_ids.size()));
  for (const int32_t id : record.token_ids) body.Put(id);
  body.Put(static_cast<uint8_t>(record.blocks.has_value()));
  if (record.blocks.has_value()) {
    body.PutText(record.blocks->numerics_id);
    body.PutText(record.blocks->kv_format);
    body.Put(record.blocks->block_tokens);
    body.Put(record.blocks->tokens);
    body.Put(static_cast<uint32_t>(record.blocks->groups.size()));
    for (const SessionFileGroup& group : record.blocks->groups) {
      body.Put(group.block_bytes);
      body.Put(group.blocks);
    }
  }
  Writer head;
  head.bytes().append(kSessionMagic);
  head.Put(kSessionFileVersion);
  head.Put(static_cast<uint32_t>(body.bytes().size()));
  head.Put(record.blocks.has_value() ? record.blocks->records_bytes() : uint64_t{0});
  head.bytes().append(body.bytes());
  return head.Take();
}

uint64_t SessionFileBytes(const SessionFileRecord& record) {
  const uint64_t blocks = record.blocks.has_value() ? record.blocks->records_bytes() : 0;
  return EncodeSessionFileHead(record).size() + blocks + kSessionFileTrailerBytes;
}

struct SessionFileChecksum::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

SessionFileChecksum::SessionFileChecksum() : state_(std::make_unique<State>()) {
  KVIST_CHECK(
      state_->context != nullptr && EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr) == 1,
      "OpenSSL has no SHA-256");
}
SessionFileChecksum::~SessionFileChecksum() = default;

void SessionFileChecksum::Add(std::span<const std::byte> bytes) {
  KVIST_CHECK(EVP_DigestUpdate(state_->context, bytes.data(), bytes.size()) == 1);
}

SessionFileChecksum::Digest SessionFileChecksum::Finish() {
  Digest digest;
  static_assert(sizeof(digest) == kDigestBytes);
  KVIST_CHECK(EVP_DigestFinal_ex(state_->context, digest.data(), nullptr) == 1);
  return digest;
}

std::string SessionFileTrailer(const SessionFileChecksum::Digest& digest,
                               std::string_view seal_key) {
  const SessionFileChecksum::Digest seal = SealOf(digest, seal_key);
  std::string trailer(digest.begin(), digest.end());
  trailer.append(seal.begin(), seal.end());
  static_assert(kSessionFileTrailerBytes == 2 * kDigestBytes);
  return trailer;
}

absl::Status SessionFileReader::TakeFront() {
  if (std::string_view(gathered_).substr(0, kSessionMagic.size()) != kSessionMagic) {
    return InvalidField("magic", "this is no session file");
  }
  Reader reader(std::string_view(gathered_).substr(kSessionMagic.size()));
  const uint32_t version = reader.Get<uint32_t>("version");
  if (version != kSessionFileVersion) {
    return InvalidField("version", absl::StrCat("the session file has version ", version,
                                                "; this kvist reads ", kSessionFileVersion));
  }
  record_bytes_ = reader.Get<uint32_t>("record_bytes");
  blocks_bytes_ = reader.Get<uint64_t>("blocks_bytes");
  if (record_bytes_ == 0 || record_bytes_ > kMaxSessionRecordBytes) {
    return FieldOutOfRange("record_bytes", absl::StrCat("must be 1 to ", kMaxSessionRecordBytes));
  }
  if (blocks_bytes_ > kMaxSessionBlocksBytes) {
    return FieldOutOfRange("blocks_bytes", absl::StrCat("more than ", kMaxSessionBlocksBytes));
  }
  end_ = kSessionFileFrontBytes + record_bytes_ + blocks_bytes_ + kSessionFileTrailerBytes;
  return absl::OkStatus();
}

absl::Status SessionFileReader::TakeRecord() {
  KVIST_ASSIGN_OR_RETURN(record_, DecodeRecord(gathered_));
  const uint64_t bytes = record_->blocks.has_value() ? record_->blocks->records_bytes() : 0;
  if (bytes == blocks_bytes_) return absl::OkStatus();
  record_.reset();
  return InvalidField("blocks_bytes", "are not those of the blocks that the record tells");
}

absl::Status SessionFileReader::TakeTrailer() {
  digest_ = checksum_.Finish();
  if (std::memcmp(gathered_.data(), digest_.data(), digest_.size()) != 0) {
    return WithDetails(absl::DataLossError("the session file is damaged: its checksum does not "
                                           "agree with its bytes"),
                       {.field = "checksum"});
  }
  seal_ = gathered_.substr(digest_.size());
  whole_ = true;
  return absl::OkStatus();
}

absl::Status SessionFileReader::Add(std::span<const std::byte> bytes) {
  blocks_ = {};
  while (!bytes.empty()) {
    // The part that the next byte belongs to: where it ends.
    const uint64_t record_end = kSessionFileFrontBytes + record_bytes_;
    const bool in_front = offset_ < kSessionFileFrontBytes;
    const uint64_t blocks_end = record_end + blocks_bytes_;
    const bool in_blocks = !in_front && offset_ >= record_end && offset_ < blocks_end;
    const bool in_trailer = !in_front && offset_ >= blocks_end;
    if (in_trailer && offset_ == end_) {
      return WithDetails(absl::DataLossError("the session file goes on behind its end"),
                         {.field = "file_bytes"});
    }
    const uint64_t part_end = in_front     ? kSessionFileFrontBytes
                              : in_trailer ? end_
                              : in_blocks  ? blocks_end
                                           : record_end;
    const auto part =
        bytes.first(static_cast<size_t>(std::min<uint64_t>(bytes.size(), part_end - offset_)));
    bytes = bytes.subspan(part.size());
    offset_ += part.size();
    if (!in_trailer) checksum_.Add(part);
    if (in_blocks) {
      blocks_ = part;
      continue;
    }
    gathered_.append(Text(part));
    if (offset_ < part_end) continue;
    KVIST_RETURN_IF_ERROR(in_front ? TakeFront() : in_trailer ? TakeTrailer() : TakeRecord());
    gathered_.clear();
  }
  return absl::OkStatus();
}

absl::Status SessionFileReader::Finish() const {
  if (whole_) return absl::OkStatus();
  return WithDetails(
      absl::DataLossError(absl::StrCat("the session file is cut off after ", offset_, " bytes")),
      {.field = "file_bytes"});
}

bool SessionFileReader::SealedWith(std::string_view seal_key) const {
  KVIST_CHECK(whole_);
  const SessionFileChecksum::Digest seal = SealOf(digest_, seal_key);
  return CRYPTO_memcmp(seal.data(), seal_.data(), seal.size()) == 0;
}

}  // namespace kvist::worker
