#include "services/worker/session_transfer.h"

#include <algorithm>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache_manager/limits.h"
#include "common/base/int_math.h"
#include "common/base/status.h"
#include "services/runtime/cache_params.h"
#include "services/runtime/id_syntax.h"
#include "services/worker/limits.h"
#include "services/worker/request_codec.h"
#include "worker/engine/session_copies.h"
#include "worker/kv/block_file.h"
#include "worker/kv/session_file.h"

namespace kvist::services {
namespace {

namespace cm = ::kvist::cache_manager;
using worker::BlockFile;
using worker::BlockFileEntry;
using worker::BlockPlace;
using worker::SessionCopies;
using worker::SessionHistory;

absl::StatusOr<SessionHistory> ParseHistory(const v1::SessionHistory& message,
                                            const worker::ModelFacts& model) {
  KVIST_RETURN_IF_ERROR(CheckId("session_id", message.session_id(), EmptyId::kRefused));
  KVIST_RETURN_IF_ERROR(CheckId("tenant_id", message.tenant_id(), EmptyId::kAllowed));
  if (message.tenant_salt().size() != kTenantSaltBytes) {
    return InvalidField("tenant_salt", "must have 32 bytes");
  }
  if (static_cast<size_t>(message.ids_size()) > cm::kMaxSessionTokens) {
    return FieldOutOfRange("ids", absl::StrCat("more than ", cm::kMaxSessionTokens));
  }
  for (const int32_t id : message.ids()) {
    if (id >= 0 && id < model.vocab) continue;
    return InvalidField("ids", absl::StrCat(id, " is not in the vocabulary of ", model.vocab));
  }
  SessionHistory history{.session = SessionId(message.session_id()),
                         .tenant = TenantId(message.tenant_id()),
                         .tenant_salt = message.tenant_salt(),
                         .tokens = {message.ids().begin(), message.ids().end()}};
  KVIST_ASSIGN_OR_RETURN(history.cache, ParseCache(message.cache(), model.context_tokens));
  return history;
}

absl::Status Stopped() { return Unavailable(ErrorReason::kDraining, "the worker has stopped"); }

// Runs `work` between two steps. UNAVAILABLE (kDraining) if the engine is stopped.
absl::Status Between(worker::Engine* engine,
                     const std::function<absl::Status(SessionCopies&)>& work) {
  absl::Status status;
  const bool ran =
      engine->RunBetweenSteps([&](worker::EngineState& state) { status = work(state.copies); });
  return ran ? status : Stopped();
}

// Ends a copy with the call. Single-threaded.
class CopyEnd {
 public:
  CopyEnd(worker::Engine* engine, uint64_t id) : engine_(engine), id_(id) {}
  // Where the engine has stopped, its end lets go of the blocks.
  ~CopyEnd() {
    engine_->RunBetweenSteps([&](worker::EngineState& state) { state.copies.End(id_); });
  }
  CopyEnd(const CopyEnd&) = delete;
  CopyEnd& operator=(const CopyEnd&) = delete;

 private:
  worker::Engine* const engine_;
  const uint64_t id_;
};

// The form of records and the names that the blocks of one history have in them. Immutable, so
// Thread-safe.
class Records {
 public:
  Records(const worker::Backend& backend, worker::KvFormat format, const SessionHistory& history,
          int64_t tokens)
      : tokens_(std::span<const int32_t>(history.tokens).first(static_cast<size_t>(tokens))) {
    for (const worker::PoolSpec& pool : backend.pools()) {
      if (pool.format != format) continue;
      files_.emplace_back(worker::BlockFileScope{.model_fingerprint = backend.model().fingerprint,
                                                 .numerics_id = backend.numerics_id(),
                                                 .group = pool.group,
                                                 .format = format,
                                                 .block_tokens = pool.block_tokens,
                                                 .block_bytes = pool.block_bytes});
    }
    block_tokens_ = static_cast<size_t>(files_[0].block_tokens());
    keys_ = {worker::SessionFileRoot(backend.model().fingerprint, history.cache.attention,
                                     files_[0].block_tokens())};
    const auto named = cm::KeysOf(keys_[0], tokens_, files_[0].block_tokens());
    keys_.insert(keys_.end(), named.begin(), named.end());
  }

  size_t groups() const { return files_.size(); }
  const BlockFile& file(size_t group) const { return files_[group]; }
  int32_t block_tokens() const { return files_[0].block_tokens(); }

  // What the record of that block says. REQUIRES: the tokens reach into the block.
  BlockFileEntry EntryOf(int64_t index) const {
    const size_t b = static_cast<size_t>(index);
    const auto tokens = tokens_.subspan(
        b * block_tokens_, std::min(block_tokens_, tokens_.size() - b * block_tokens_));
    return {.key = tokens.size() == block_tokens_ ? keys_[b + 1] : cm::BlockKey(),
            .parent = keys_[b],
            .tokens = {tokens.begin(), tokens.end()},
            .sequence = static_cast<uint64_t>(index)};
  }
  bool Reaches(uint64_t index) const {
    return index < CeilDiv<uint64_t>(tokens_.size(), block_tokens_);
  }

 private:
  std::span<const int32_t> tokens_;
  std::vector<BlockFile> files_;  // by layer group
  size_t block_tokens_ = 0;
  std::vector<cm::BlockKey> keys_;  // behind the root
};

v1::SessionBlocks BlocksMessage(const worker::Backend& backend, const Records& records,
                                const worker::SessionExport& out) {
  v1::SessionBlocks blocks;
  blocks.set_numerics_id(backend.numerics_id());
  blocks.set_kv_format(std::string(worker::KvFormatName(out.format)));
  blocks.set_block_tokens(records.block_tokens());
  blocks.set_tokens(out.tokens);
  for (size_t g = 0; g < records.groups(); ++g) {
    const auto of_group = std::count_if(
        out.places.begin(), out.places.end(),
        [g](const BlockPlace& place) { return static_cast<size_t>(place.group) == g; });
    v1::GroupBlocks& group = *blocks.add_groups();
    group.set_block_bytes(static_cast<int64_t>(records.file(g).block_bytes()));
    group.set_blocks(of_group);
  }
  return blocks;
}

// False: nobody reads any more.
bool WriteRecord(std::span<const std::byte> record,
                 grpc::ServerWriterInterface<v1::WorkerExportResponse>* writer) {
  v1::WorkerExportResponse response;
  while (!record.empty()) {
    const auto part = record.first(std::min(record.size(), kMaxSessionRecordsMessage));
    response.set_records(part.data(), part.size());
    if (!writer->Write(response)) return false;
    record = record.subspan(part.size());
  }
  return true;
}

absl::Status CheckBlocks(const v1::SessionBlocks& blocks, const worker::Backend& backend,
                         const Records& records) {
  const auto other = [](std::string_view field, const std::string& theirs,
                        const std::string& ours) {
    return WithDetails(
        absl::FailedPreconditionError(absl::StrCat(ToAbsl(field), ": the blocks have \"", theirs,
                                                   "\", this worker \"", ours, "\"")),
        {.field = std::string(field)});
  };
  if (blocks.numerics_id() != backend.numerics_id()) {
    return other("numerics_id", blocks.numerics_id(), backend.numerics_id());
  }
  if (blocks.block_tokens() != records.block_tokens()) {
    return other("block_tokens", absl::StrCat(blocks.block_tokens()),
                 absl::StrCat(records.block_tokens()));
  }
  if (static_cast<size_t>(blocks.groups_size()) != records.groups()) {
    return InvalidField("blocks.groups", "are not as many as the model's layer groups");
  }
  for (size_t g = 0; g < records.groups(); ++g) {
    const int64_t theirs = blocks.groups(static_cast<int>(g)).block_bytes();
    const int64_t ours = static_cast<int64_t>(records.file(g).block_bytes());
    if (theirs != ours) {
      return InvalidField("blocks.groups.block_bytes",
                          absl::StrCat("are ", theirs, "; this model's are ", ours));
    }
  }
  return absl::OkStatus();
}

// Takes the records of an import as their bytes come. Single-threaded.
class RecordTaker {
 public:
  RecordTaker(worker::Engine* engine, uint64_t id, const Records& records,
              const std::vector<int64_t>& blocks)
      : engine_(engine), id_(id), records_(records), left_(blocks) {}

  absl::Status Add(std::string_view bytes) {
    if (bytes.size() > kMaxSessionRecordsMessage) {
      return InvalidField("records", absl::StrCat("more than ", kMaxSessionRecordsMessage,
                                                  " bytes in one message"));
    }
    const auto* data = reinterpret_cast<const std::byte*>(bytes.data());
    buffer_.insert(buffer_.end(), data, data + bytes.size());
    std::vector<Ready> ready;
    size_t at = 0;
    KVIST_RETURN_IF_ERROR(TakeWhole(&ready, &at));
    if (ready.empty()) return absl::OkStatus();
    const absl::Status written = Between(engine_, [&](SessionCopies& copies) {
      absl::Status status;
      for (size_t i = 0; status.ok() && i < ready.size(); ++i) {
        status = copies.Write(id_, ready[i].place, ready[i].bytes);
      }
      return status;
    });
    KVIST_RETURN_IF_ERROR(written);
    taken_ += static_cast<int64_t>(ready.size());
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(at));
    return absl::OkStatus();
  }

  bool complete() const {
    return buffer_.empty() &&
           std::all_of(left_.begin(), left_.end(), [](int64_t blocks) { return blocks == 0; });
  }
  int64_t taken() const { return taken_; }

 private:
  struct Ready {
    BlockPlace place;
    std::span<const std::byte> bytes;
  };

  // Checks every whole record in the buffer.
  absl::Status TakeWhole(std::vector<Ready>* ready, size_t* at) {
    while (true) {
      while (group_ < left_.size() && left_[group_] == 0) ++group_;
      if (group_ == left_.size()) {
        if (*at == buffer_.size()) return absl::OkStatus();
        return InvalidField("records", "go on behind the last block");
      }
      const BlockFile& file = records_.file(group_);
      if (buffer_.size() - *at < file.record_bytes()) return absl::OkStatus();
      const auto record =
          std::span<const std::byte>(buffer_).subspan(*at).first(file.record_bytes());
      KVIST_ASSIGN_OR_RETURN(const BlockFileEntry entry, file.Decode(record));
      if (!records_.Reaches(entry.sequence) ||
          entry != records_.EntryOf(static_cast<int64_t>(entry.sequence))) {
        return InvalidField("records.tokens", "a block's tokens are not those of the history");
      }
      ready->push_back({{static_cast<int32_t>(group_), static_cast<int64_t>(entry.sequence)},
                        file.BlockOf(record)});
      *at += record.size();
      --left_[group_];
    }
  }

  worker::Engine* const engine_;
  const uint64_t id_;
  const Records& records_;
  std::vector<int64_t> left_;  // blocks that have not come, by layer group
  size_t group_ = 0;
  std::vector<std::byte> buffer_;  // of a record, or the records of a message
  int64_t taken_ = 0;
};

// Reads all records, says so, and reads the commit.
absl::Status TakeAll(SessionTransfer::ImportStream* reader, SessionTransfer::ImportAnswers* writer,
                     RecordTaker* taker) {
  v1::WorkerImportRequest message;
  const auto no_commit = [] {
    return absl::CancelledError("the import ended without a commit: nothing is kept");
  };
  while (!taker->complete()) {
    if (!reader->Read(&message)) return no_commit();
    if (message.part_case() != v1::WorkerImportRequest::kRecords) {
      return InvalidField("records", "are fewer than were announced");
    }
    KVIST_RETURN_IF_ERROR(taker->Add(message.records()));
  }
  v1::WorkerImportResponse response;
  response.set_ready(true);
  if (!writer->Write(response) || !reader->Read(&message)) return no_commit();
  if (message.commit()) return absl::OkStatus();
  return InvalidField("records", "go on behind the last block");
}

// Names all blocks, some between each two steps. Returns how much of the history is found now.
absl::StatusOr<int64_t> CommitAll(worker::Engine* engine, uint64_t id) {
  int64_t cached_tokens = 0;
  bool done = false;
  while (!done) {
    KVIST_RETURN_IF_ERROR(Between(engine, [&](SessionCopies& copies) -> absl::Status {
      KVIST_ASSIGN_OR_RETURN(done, copies.Commit(id, kSessionBlocksNamedAtOnce));
      if (done) cached_tokens = copies.Settle(id);
      return absl::OkStatus();
    }));
  }
  return cached_tokens;
}

}  // namespace

absl::Status SessionTransfer::CheckIncarnation(uint64_t expected) const {
  if (expected == 0 || expected == options_.incarnation) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat("this worker's incarnation is ", options_.incarnation));
}

absl::Status SessionTransfer::Export(
    const v1::WorkerExportRequest& request,
    grpc::ServerWriterInterface<v1::WorkerExportResponse>* writer) {
  KVIST_RETURN_IF_ERROR(CheckIncarnation(request.expected_incarnation()));
  worker::Engine* const engine = options_.engine;
  const worker::Backend& backend = engine->backend();
  KVIST_ASSIGN_OR_RETURN(const SessionHistory history,
                         ParseHistory(request.history(), backend.model()));
  worker::SessionExport out;
  KVIST_RETURN_IF_ERROR(Between(engine, [&](SessionCopies& copies) -> absl::Status {
    KVIST_ASSIGN_OR_RETURN(out, copies.BeginExport(history));
    return absl::OkStatus();
  }));
  const CopyEnd end(engine, out.id);
  const Records records(backend, out.format, history, out.tokens);
  v1::WorkerExportResponse first;
  *first.mutable_blocks() = BlocksMessage(backend, records, out);
  bool read = writer->Write(first);
  std::vector<std::vector<std::byte>> slice;
  for (size_t next = 0; read && next < out.places.size();) {
    slice.clear();
    KVIST_RETURN_IF_ERROR(Between(engine, [&](SessionCopies& copies) {
      for (size_t bytes = 0; next < out.places.size() && bytes < kSessionSliceBytes; ++next) {
        const BlockFile& file = records.file(static_cast<size_t>(out.places[next].group));
        slice.emplace_back(file.record_bytes());
        copies.Read(out.id, next, file.BlockOf(std::span<std::byte>(slice.back())));
        bytes += file.block_bytes();
      }
      return absl::OkStatus();
    }));
    for (size_t i = 0; read && i < slice.size(); ++i) {
      const BlockPlace& place = out.places[next - slice.size() + i];
      records.file(static_cast<size_t>(place.group)).Encode(records.EntryOf(place.index), slice[i]);
      read = WriteRecord(slice[i], writer);
      options_.metrics->session_blocks_exported_total.Increment();
    }
  }
  return read ? absl::OkStatus() : absl::CancelledError("nobody reads the export");
}

absl::Status SessionTransfer::Import(ImportStream* reader, ImportAnswers* writer) {
  v1::WorkerImportRequest message;
  if (!reader->Read(&message) || !message.has_head()) {
    return InvalidField("head", "must be the first message");
  }
  worker::Engine* const engine = options_.engine;
  const worker::Backend& backend = engine->backend();
  KVIST_RETURN_IF_ERROR(CheckIncarnation(message.head().expected_incarnation()));
  const v1::SessionBlocks blocks = message.head().blocks();
  KVIST_ASSIGN_OR_RETURN(SessionHistory history,
                         ParseHistory(message.head().history(), backend.model()));
  const worker::KvFormat format = history.cache.kv_format.value_or(backend.pools()[0].format);
  if (blocks.kv_format() != worker::KvFormatName(format)) {
    return InvalidField("blocks.kv_format", "is not that of the session's turns here");
  }
  if (blocks.tokens() < 0 || blocks.tokens() > static_cast<int64_t>(history.tokens.size())) {
    return InvalidField("blocks.tokens", "are not in the history");
  }
  worker::SessionImport import{.history = history, .tokens = blocks.tokens()};
  for (const v1::GroupBlocks& group : blocks.groups()) import.blocks.push_back(group.blocks());
  const std::vector<int64_t> counts = import.blocks;
  uint64_t id = 0;
  if (std::none_of(backend.pools().begin(), backend.pools().end(),
                   [&](const worker::PoolSpec& pool) { return pool.format == format; })) {
    return InvalidField("cache.kv_format", "is not served here");
  }
  const Records records(backend, format, history, blocks.tokens());
  KVIST_RETURN_IF_ERROR(CheckBlocks(blocks, backend, records));
  KVIST_RETURN_IF_ERROR(Between(engine, [&](SessionCopies& copies) -> absl::Status {
    KVIST_ASSIGN_OR_RETURN(id, copies.BeginImport(std::move(import)));
    return absl::OkStatus();
  }));
  const CopyEnd end(engine, id);
  RecordTaker taker(engine, id, records, counts);
  KVIST_RETURN_IF_ERROR(TakeAll(reader, writer, &taker));
  KVIST_ASSIGN_OR_RETURN(const int64_t cached_tokens, CommitAll(engine, id));
  options_.metrics->session_blocks_imported_total.Increment(static_cast<double>(taker.taken()));
  v1::WorkerImportResponse response;
  response.set_ready(true);
  response.set_blocks(taker.taken());
  response.set_cached_tokens(cached_tokens);
  writer->Write(response);
  return absl::OkStatus();
}

}  // namespace kvist::services
