#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cache_manager/limits.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "services/frontend/limits.h"
#include "services/frontend/session_files.h"
#include "services/frontend/validate.h"
#include "services/runtime/cache_params.h"
#include "services/runtime/status_map.h"

namespace kvist::services {
namespace {

// For sessions that said nothing of it: as CreateSessionRequest.ttl_seconds.
constexpr int64_t kDefaultTtlSeconds = 7 * 24 * 3600;

// Why blocks are left out: what the file's have and what is served here.
std::string OtherThanServed(std::string_view what, std::string_view theirs, std::string_view ours) {
  return absl::StrCat("its blocks have ", ToAbsl(what), " ", ToAbsl(theirs), ", here it is ",
                      ToAbsl(ours));
}

// Why a worker cannot take the blocks; empty if it can.
std::string Mismatch(const worker::SessionFileBlocks& blocks, const std::string& kv_format,
                     const v1::WorkerInfo& info) {
  if (info.numerics_id() != blocks.numerics_id) {
    return OtherThanServed("numerics id", blocks.numerics_id, info.numerics_id());
  }
  if (info.pools().empty()) return "the worker has no pools";
  const std::string& used = kv_format.empty() ? info.pools(0).kv_format() : kv_format;
  if (used != blocks.kv_format) return OtherThanServed("KV format", blocks.kv_format, used);
  size_t group = 0;
  for (const v1::Pool& pool : info.pools()) {
    if (pool.kv_format() != used) continue;
    if (pool.block_tokens() != blocks.block_tokens) {
      return OtherThanServed("block size", absl::StrCat(blocks.block_tokens),
                             absl::StrCat(pool.block_tokens()));
    }
    if (group == blocks.groups.size()) return "its blocks are of other layer groups";
    if (pool.bytes_per_block() != blocks.groups[group].block_bytes) {
      return "its blocks are of another size in bytes";
    }
    if (pool.num_blocks() < blocks.groups[group].blocks) {
      return absl::StrCat("the worker's KV memory holds ", pool.num_blocks(),
                          " blocks, the file has ", blocks.groups[group].blocks);
    }
    ++group;
  }
  return group == blocks.groups.size() ? "" : "its blocks are of other layer groups";
}

// One worker's stream, to which the blocks go.
struct BlockTarget {
  grpc::ClientContext context;
  std::unique_ptr<
      grpc::ClientReaderWriterInterface<v1::WorkerImportRequest, v1::WorkerImportResponse>>
      stream;

  ~BlockTarget() {
    if (stream == nullptr) return;
    context.TryCancel();
    v1::WorkerImportResponse unread;
    while (stream->Read(&unread)) continue;
    stream->Finish();
  }
};

// The state of one import.
class Importer {
 public:
  Importer(FrontendState& state, grpc::ServerContext* context,
           grpc::ServerReader<v1::ImportSessionRequest>* reader,
           v1::ImportSessionResponse* response)
      : state_(state), patience_(context), reader_(reader), response_(response) {}

  absl::Status Run() {
    v1::ImportSessionRequest message;
    if (!Read(&message) || !message.has_start()) {
      return InvalidField("start", "must be the first message");
    }
    id_ = message.start().id();
    if (!id_.empty()) KVIST_RETURN_IF_ERROR(ValidateNewSessionId("id", id_));
    while (Read(&message)) {
      if (message.part_case() != v1::ImportSessionRequest::kData) {
        return InvalidField("data", "must follow the start");
      }
      if (message.data().size() > kMaxSessionFileMessage) {
        return InvalidField("data",
                            absl::StrCat("more than ", kMaxSessionFileMessage, " bytes at once"));
      }
      const bool knew = file_.record().has_value();
      KVIST_RETURN_IF_ERROR(
          file_.Add(std::as_bytes(std::span(message.data().data(), message.data().size()))));
      if (!knew && file_.record().has_value()) KVIST_RETURN_IF_ERROR(TakeRecord());
      KVIST_RETURN_IF_ERROR(PassBlocks());
    }
    KVIST_RETURN_IF_ERROR(file_.Finish());
    return Keep();
  }

 private:
  bool Read(v1::ImportSessionRequest* message) {
    patience_.Start();
    const bool read = reader_->Read(message);
    patience_.Stop();
    return read;
  }

  void LeaveOut(std::string why) { notes_.push_back(std::move(why)); }

  // Checks all that the file says of the session, and opens the way for its blocks.
  absl::Status TakeRecord() {
    const worker::SessionFileRecord& record = *file_.record();
    if (id_.empty()) {
      id_ = record.id;
      KVIST_RETURN_IF_ERROR(ValidateNewSessionId("id", id_));
    }
    const auto allocation = AllocationFromName(record.allocation);
    if (AllocationName(allocation) != record.allocation) {
      return InvalidField("cache.allocation", "is none that this kvist knows");
    }
    const auto offload = OffloadFromName(record.offload);
    if (OffloadName(offload) != record.offload) {
      return InvalidField("cache.offload", "is none that this kvist knows");
    }
    cache_.set_allocation(allocation);
    cache_.set_offload(offload);
    if (record.attention != cache_manager::AttentionSpan()) {
      *cache_.mutable_attention() = ToProto(record.attention);
    }
    cache_.set_kv_format(record.kv_format);
    KVIST_RETURN_IF_ERROR(ValidateCacheParams(cache_, cache_manager::kMaxWindowTokens));
    ttl_seconds_ = record.time_to_live_ms / 1000 + (record.time_to_live_ms % 1000 != 0);
    if (ttl_seconds_ == 0) ttl_seconds_ = kDefaultTtlSeconds;
    if (ttl_seconds_ > kMaxSessionTtlSeconds) {
      return FieldOutOfRange("time_to_live_ms", "is more than a year");
    }
    KVIST_RETURN_IF_ERROR(CheckModel(record));
    KVIST_RETURN_IF_ERROR(CheckUnused());
    OpenTarget(record);
    return absl::OkStatus();
  }

  absl::Status CheckModel(const worker::SessionFileRecord& record) {
    if (record.model_fingerprint.empty()) return absl::OkStatus();
    const auto model = state_.directory.FindModel(record.model_fingerprint);
    if (!model.ok() && !absl::IsNotFound(model.status())) return model.status();
    if (!model.ok() || (*model)->fingerprint() != record.model_fingerprint) {
      std::vector<std::string> names;
      for (const v1::Model& served : state_.directory.Models()) names.push_back(served.name());
      return WithDetails(absl::FailedPreconditionError(absl::StrCat(
                             "the session's history is of the model \"", record.model_name,
                             "\" (fingerprint ", record.model_fingerprint,
                             "), which is not served here; there is ", absl::StrJoin(names, ", "))),
                         {.field = "model_fingerprint"});
    }
    const ModelLimits& limits = (*model)->limits();
    KVIST_RETURN_IF_ERROR(ValidateIds("token_ids", record.token_ids, limits.vocab));
    LeaveOutUnserved(limits);
    return absl::OkStatus();
  }

  // Of what the session asks of its cache: no turn could have it.
  void LeaveOutUnserved(const ModelLimits& limits) {
    if (!ValidateKvFormat(cache_.kv_format(), limits).ok()) {
      LeaveOut(absl::StrCat("the session asks for the KV format ", cache_.kv_format(),
                            ", which is not served here: it gets the default"));
      cache_.clear_kv_format();
    }
    if (!ValidateOffload(cache_.offload(), limits).ok()) {
      LeaveOut(absl::StrCat("the session asks to offload to ",
                            ToAbsl(OffloadName(cache_.offload())),
                            ", which is not served here: it does without"));
      cache_.clear_offload();
    }
    const int64_t window = cache_.attention().window_tokens();
    if (window <= limits.context_tokens) return;
    LeaveOut(absl::StrCat("the session has a window of ", window,
                          " tokens, here the context holds ", limits.context_tokens,
                          ": it sees all of it"));
    cache_.clear_attention();
  }

  // The manager has the last word at the end; most people should hear it before they sent it all.
  absl::Status CheckUnused() {
    v1::GetSessionRequest get;
    get.set_id(id_);
    const absl::Status status =
        state_.manager.Call(&v1::Sessions::StubInterface::Get, get).status();
    if (absl::IsNotFound(status)) return absl::OkStatus();
    if (!status.ok()) return status;
    return WithDetails(absl::AlreadyExistsError(absl::StrCat(
                           "there is a session ", id_, ": delete it, or import under another id")),
                       {.field = "id"});
  }

  void OpenTarget(const worker::SessionFileRecord& record) {
    if (!record.blocks.has_value()) {
      if (!record.token_ids.empty()) LeaveOut("the file has no blocks");
      return;
    }
    if (SpanFromProto(cache_.attention()) != record.attention) {
      return LeaveOut("its blocks are of the window that it had");
    }
    const std::optional<KnownWorker> worker = ChooseWorker(record);
    if (!worker.has_value()) return;
    auto target = std::make_unique<BlockTarget>();
    target->context.set_deadline(std::chrono::system_clock::now() + kMaxSessionFileTime);
    target->stream = worker->stub->ImportSession(&target->context);
    v1::WorkerImportRequest first;
    v1::WorkerImportHead& head = *first.mutable_head();
    *head.mutable_history() = HistoryOf(state_, id_, record, cache_);
    head.set_expected_incarnation(worker->incarnation);
    v1::SessionBlocks& blocks = *head.mutable_blocks();
    blocks.set_numerics_id(record.blocks->numerics_id);
    blocks.set_kv_format(record.blocks->kv_format);
    blocks.set_block_tokens(record.blocks->block_tokens);
    blocks.set_tokens(record.blocks->tokens);
    for (const worker::SessionFileGroup& group : record.blocks->groups) {
      v1::GroupBlocks& message = *blocks.add_groups();
      message.set_block_bytes(group.block_bytes);
      message.set_blocks(group.blocks);
    }
    target_ = std::move(target);
    target_->stream->Write(first);  // what became of it is known when it ends
  }

  // The least loaded worker that can take the blocks; nullopt: why none can is noted.
  std::optional<KnownWorker> ChooseWorker(const worker::SessionFileRecord& record) {
    const auto listed = state_.manager.ListWorkers();
    std::string why = "no worker is ready";
    std::optional<KnownWorker> best;
    if (!listed.ok()) {
      LeaveOut(why);
      return best;
    }
    for (const KnownWorker& worker : state_.directory.WorkersOf(record.model_fingerprint)) {
      if (worker.load.draining() || worker.suspect) continue;
      const auto info = std::find_if(
          listed->workers().begin(), listed->workers().end(), [&](const v1::WorkerInfo& one) {
            return one.worker_id() == worker.id && one.incarnation() == worker.incarnation;
          });
      if (info == listed->workers().end()) continue;
      const std::string mismatch = Mismatch(*record.blocks, cache_.kv_format(), *info);
      if (!mismatch.empty()) {
        why = mismatch;
        continue;
      }
      const auto load = [](const KnownWorker& one) {
        return one.load.running_sequences() + one.load.waiting_sequences();
      };
      if (!best.has_value() || load(worker) < load(*best)) best = worker;
    }
    if (!best.has_value()) LeaveOut(why);
    return best;
  }

  absl::Status PassBlocks() {
    if (target_ == nullptr || file_.blocks().empty()) return absl::OkStatus();
    v1::WorkerImportRequest message;
    message.set_records(file_.blocks().data(), file_.blocks().size());
    if (target_->stream->Write(message)) return absl::OkStatus();
    return TargetEnded();
  }

  // The worker ended the stream. Not OK: the file itself is at fault.
  absl::Status TargetEnded() {
    const absl::Status status = FromGrpc(target_->stream->Finish(), target_->context);
    target_->stream.reset();
    target_.reset();
    if (absl::IsInvalidArgument(status) || absl::IsDataLoss(status)) return status;
    LeaveOut(absl::StrCat("the worker did not take its blocks: ", std::string(status.message())));
    return absl::OkStatus();
  }

  bool Believed() const {
    return state_.trust_snapshots || file_.SealedWith(state_.session_seal_key);
  }

  // The file is whole: the session is made, and its blocks get their names.
  absl::Status Keep() {
    v1::WorkerImportResponse answer;
    if (target_ != nullptr && !Believed()) {
      LeaveOut(
          "the file was sealed under another cluster secret, or by a server that has none and has "
          "ended, so its blocks are not believed (--trust-snapshots would)");
      target_.reset();
    }
    // First all must have come to the worker: a record that is wrong refuses the whole file.
    if (target_ != nullptr && !target_->stream->Read(&answer)) {
      KVIST_RETURN_IF_ERROR(TargetEnded());
    }
    const worker::SessionFileRecord& record = *file_.record();
    v1::RestoreSessionRequest restore;
    restore.set_id(id_);
    restore.set_model_fingerprint(record.model_fingerprint);
    restore.mutable_history_ids()->Add(record.token_ids.begin(), record.token_ids.end());
    restore.set_turns(record.turns);
    *restore.mutable_cache() = cache_;
    restore.set_ttl_seconds(ttl_seconds_);
    KVIST_ASSIGN_OR_RETURN(
        *response_->mutable_session(),
        state_.manager.Call(&v1::CacheManager::StubInterface::RestoreSession, restore));
    NameBlocks();
    response_->set_note(absl::StrJoin(notes_, "; "));
    return absl::OkStatus();
  }

  void NameBlocks() {
    if (target_ == nullptr) return;
    v1::WorkerImportRequest commit;
    commit.set_commit(true);
    v1::WorkerImportResponse answer;
    if (target_->stream->Write(commit) && target_->stream->Read(&answer)) {
      response_->set_blocks(answer.blocks());
      response_->set_cached_tokens(answer.cached_tokens());
      target_->stream->Finish();
      target_->stream.reset();
      return;
    }
    // The session is there all the same: its next turn computes what is missing.
    const absl::Status status = TargetEnded();
    if (!status.ok()) LeaveOut(std::string(status.message()));
  }

  FrontendState& state_;
  CallPatience patience_;
  grpc::ServerReader<v1::ImportSessionRequest>* const reader_;
  v1::ImportSessionResponse* const response_;
  worker::SessionFileReader file_;
  std::string id_;
  v1::CacheParams cache_;
  int64_t ttl_seconds_ = 0;
  std::unique_ptr<BlockTarget> target_;
  std::vector<std::string> notes_;
};

}  // namespace

absl::Status ImportSession(FrontendState& state, grpc::ServerContext* context,
                           grpc::ServerReader<v1::ImportSessionRequest>* reader,
                           v1::ImportSessionResponse* response) {
  KVIST_ASSIGN_OR_RETURN(const auto ticket, state.session_files.Admit(1));
  return Importer(state, context, reader, response).Run();
}

}  // namespace kvist::services
