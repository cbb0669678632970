#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "cache_manager/block_key.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "services/frontend/limits.h"
#include "services/frontend/session_files.h"
#include "services/frontend/validate.h"
#include "services/runtime/cache_params.h"
#include "services/runtime/status_map.h"

namespace kvist::services {
namespace {

// Workers that are asked for blocks, the likeliest first: the mirror may be behind.
constexpr size_t kMaxWorkersAsked = 3;

std::span<const std::byte> BytesOf(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

worker::SessionFileRecord RecordOf(const v1::Session& session) {
  worker::SessionFileRecord record{
      .id = session.id(),
      .model_fingerprint = session.model_fingerprint(),
      .turns = session.turns(),
      .allocation = std::string(AllocationName(session.cache().allocation())),
      .kv_format = session.cache().kv_format(),
      .offload = std::string(OffloadName(session.cache().offload())),
      .attention = SpanFromProto(session.cache().attention()),
      .token_ids = {session.history_ids().begin(), session.history_ids().end()}};
  // Between its first turn's begin and end a session has a model and no history.
  if (record.token_ids.empty()) record.model_fingerprint.clear();
  if (session.expires_unix_ms() != 0) {
    record.time_to_live_ms = session.expires_unix_ms() - session.last_used_unix_ms();
  }
  return record;
}

worker::SessionFileBlocks BlocksOf(const v1::SessionBlocks& message) {
  worker::SessionFileBlocks blocks{.numerics_id = message.numerics_id(),
                                   .kv_format = message.kv_format(),
                                   .block_tokens = message.block_tokens(),
                                   .tokens = message.tokens()};
  for (const v1::GroupBlocks& group : message.groups()) {
    blocks.groups.push_back({.block_bytes = group.block_bytes(), .blocks = group.blocks()});
  }
  return blocks;
}

// One worker's stream of blocks.
struct BlockSource {
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReaderInterface<v1::WorkerExportResponse>> reader;

  ~BlockSource() {
    if (reader == nullptr) return;
    context.TryCancel();
    v1::WorkerExportResponse unread;
    while (reader->Read(&unread)) continue;
    reader->Finish();
  }
};

// The state of one export.
class Exporter {
 public:
  Exporter(FrontendState& state, grpc::ServerContext* context,
           grpc::ServerWriter<v1::ExportSessionResponse>* writer)
      : state_(state), patience_(context), writer_(writer) {}

  absl::Status Run(const std::string& id) {
    v1::GetSessionRequest get;
    get.set_id(id);
    get.set_include_history(true);
    KVIST_ASSIGN_OR_RETURN(session_, state_.manager.Call(&v1::Sessions::StubInterface::Get, get));
    record_ = RecordOf(session_);
    FindBlocks();
    KVIST_RETURN_IF_ERROR(worker::Validate(record_));
    return Send();
  }

 private:
  // Opens `source_` at a worker that has blocks and sets the record's; else `note_` says why not.
  void FindBlocks() {
    if (record_.token_ids.empty()) {
      note_ = "the session has no history yet";
      return;
    }
    const auto model = state_.directory.FindModel(record_.model_fingerprint);
    if (!model.ok() || (*model)->fingerprint() != record_.model_fingerprint) {
      note_ = "no worker serves the session's model";
      return;
    }
    // A file has plain names.
    record_.model_name = (*model)->name();
    std::replace_if(
        record_.model_name.begin(), record_.model_name.end(),
        [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, ' ');
    if (session_.cache().allocation() == v1::CacheParams::NONE) {
      note_ = "the session keeps no cache";
      return;
    }
    note_ = "no worker has blocks of the session";
    const std::vector<KnownWorker> workers = Ranked(**model);
    for (size_t i = 0; i < std::min(workers.size(), kMaxWorkersAsked); ++i) {
      if (OpenSource(workers[i])) {
        note_.clear();
        return;
      }
    }
  }

  // The model's workers, those with most of the history first.
  std::vector<KnownWorker> Ranked(const ServedModel& model) {
    const v1::SessionHistory history = HistoryOf(state_, session_.id(), record_, session_.cache());
    const auto keys = cache_manager::KeysOf(
        cache_manager::RootKey({.model_fingerprint = record_.model_fingerprint,
                                .attention = cache_manager::AttentionText(record_.attention),
                                .block_tokens = model.block_tokens(),
                                .tenant_salt = history.tenant_salt()}),
        record_.token_ids, model.block_tokens());
    v1::LocateRequest locate;
    locate.set_model_fingerprint(record_.model_fingerprint);
    for (const cache_manager::BlockKey& key : keys) {
      locate.mutable_keys()->append(reinterpret_cast<const char*>(key.bytes.data()),
                                    key.bytes.size());
    }
    const auto& formats = model.limits().kv_formats;
    locate.set_kv_format(record_.kv_format.empty() && !formats.empty() ? formats.front()
                                                                       : record_.kv_format);
    locate.set_block_tokens(model.block_tokens());
    *locate.mutable_attention() = ToProto(record_.attention);
    absl::flat_hash_map<std::string, int64_t> score;
    if (const auto located = state_.manager.Locate(locate); located.ok()) {
      for (const v1::WorkerMatch& match : located->workers()) {
        score[match.worker().worker_id()] = 2 * match.matched_device_tokens();
      }
    }
    // A history shorter than a block has no key: who holds the session may have it.
    v1::GetSessionMemoryRequest of_session;
    of_session.set_session_id(session_.id());
    const auto memory =
        state_.manager.Call(&v1::CacheManager::StubInterface::GetSessionMemory, of_session);
    if (memory.ok() && memory->sessions_size() == 1) {
      for (const auto& worker : memory->sessions(0).workers()) ++score[worker.worker_id()];
    }
    std::vector<KnownWorker> workers = state_.directory.WorkersOf(record_.model_fingerprint);
    std::stable_sort(
        workers.begin(), workers.end(),
        [&](const KnownWorker& a, const KnownWorker& b) { return score[a.id] > score[b.id]; });
    return workers;
  }

  bool OpenSource(const KnownWorker& worker) {
    v1::WorkerExportRequest request;
    *request.mutable_history() = HistoryOf(state_, session_.id(), record_, session_.cache());
    request.set_expected_incarnation(worker.incarnation);
    auto source = std::make_unique<BlockSource>();
    source->context.set_deadline(std::chrono::system_clock::now() + kMaxSessionFileTime);
    source->reader = worker.stub->ExportSession(&source->context, request);
    v1::WorkerExportResponse first;
    if (!source->reader->Read(&first)) {
      const absl::Status status = FromGrpc(source->reader->Finish(), source->context);
      note_ = absl::StrCat("the worker gave no blocks: ", std::string(status.message()));
      LogWarning("no blocks of a session from worker {}: {}", worker.id, status.ToString());
      source->reader.reset();
      return false;
    }
    if (!first.has_blocks() || first.blocks().tokens() == 0) return false;
    record_.blocks = BlocksOf(first.blocks());
    if (const absl::Status valid = worker::Validate(record_); !valid.ok()) {
      LogWarning("worker {} tells blocks that cannot be: {}", worker.id, valid.ToString());
      record_.blocks.reset();
      return false;
    }
    source_ = std::move(source);
    return true;
  }

  absl::Status Send() {
    const std::string head = worker::EncodeSessionFileHead(record_);
    v1::ExportSessionResponse first;
    v1::SessionFileFacts& facts = *first.mutable_facts();
    facts.set_file_bytes(static_cast<int64_t>(worker::SessionFileBytes(record_)));
    facts.set_history_tokens(static_cast<int64_t>(record_.token_ids.size()));
    facts.set_note(note_);
    if (record_.blocks.has_value()) {
      facts.set_blocks(record_.blocks->count());
      facts.set_cached_tokens(record_.blocks->tokens);
    }
    KVIST_RETURN_IF_ERROR(Write(first));
    KVIST_RETURN_IF_ERROR(SendBytes(head));
    KVIST_RETURN_IF_ERROR(SendBlocks());
    v1::ExportSessionResponse last;
    last.set_data(worker::SessionFileTrailer(checksum_.Finish(), state_.session_seal_key));
    return Write(last);
  }

  absl::Status SendBlocks() {
    if (source_ == nullptr) return absl::OkStatus();
    uint64_t left = record_.blocks->records_bytes();
    v1::WorkerExportResponse message;
    while (left > 0 && source_->reader->Read(&message)) {
      if (message.records().empty() || message.records().size() > left) break;
      left -= message.records().size();
      KVIST_RETURN_IF_ERROR(SendBytes(message.records()));
    }
    if (left == 0) return absl::OkStatus();
    return Unavailable(ErrorReason::kNoWorker,
                       "the worker was lost while it sent the session's blocks; try again");
  }

  absl::Status SendBytes(std::string_view bytes) {
    checksum_.Add(BytesOf(bytes));
    v1::ExportSessionResponse response;
    while (!bytes.empty()) {
      const std::string_view part = bytes.substr(0, kMaxSessionFileMessage);
      response.set_data(part.data(), part.size());
      KVIST_RETURN_IF_ERROR(Write(response));
      bytes.remove_prefix(part.size());
    }
    return absl::OkStatus();
  }

  absl::Status Write(const v1::ExportSessionResponse& response) {
    patience_.Start();
    const bool written = writer_->Write(response);
    patience_.Stop();
    return written ? absl::OkStatus() : absl::CancelledError("the client reads no more");
  }

  FrontendState& state_;
  CallPatience patience_;
  grpc::ServerWriter<v1::ExportSessionResponse>* const writer_;
  v1::Session session_;
  worker::SessionFileRecord record_;
  worker::SessionFileChecksum checksum_;
  std::unique_ptr<BlockSource> source_;
  std::string note_;
};

}  // namespace

absl::Status ExportSession(FrontendState& state, const v1::ExportSessionRequest& request,
                           grpc::ServerContext* context,
                           grpc::ServerWriter<v1::ExportSessionResponse>* writer) {
  KVIST_RETURN_IF_ERROR(ValidateId("id", request.id()));
  KVIST_ASSIGN_OR_RETURN(const auto ticket, state.session_files.Admit(1));
  return Exporter(state, context, writer).Run(request.id());
}

}  // namespace kvist::services
