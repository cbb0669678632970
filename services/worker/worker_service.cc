#include "services/worker/worker_service.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "services/runtime/status_map.h"
#include "services/runtime/stream_wire.h"
#include "services/worker/generate_stream.h"
#include "services/worker/limits.h"
#include "services/worker/request_codec.h"

namespace kvist::services {
namespace {

v1::GetModelResponse WithoutVocabulary(v1::GetModelResponse model) {
  model.clear_vocabulary();
  return model;
}

}  // namespace

WorkerService::WorkerService(Options options)
    : options_(std::move(options)),
      model_(WithoutVocabulary(options_.model)),
      model_stop_ids_(options_.model.vocabulary().stop_ids().begin(),
                      options_.model.vocabulary().stop_ids().end()),
      transfer_({.engine = options_.engine,
                 .metrics = options_.metrics,
                 .incarnation = options_.model.incarnation()}) {}

absl::Status WorkerService::Submit(const v1::WorkerGenerateRequest& message,
                                   grpc::CallbackServerContext* context,
                                   std::shared_ptr<worker::TokenSink> sink) {
  const uint64_t incarnation = options_.model.incarnation();
  if (message.expected_incarnation() != 0 && message.expected_incarnation() != incarnation) {
    return absl::AbortedError(absl::StrCat("this worker's incarnation is ", incarnation));
  }
  KVIST_ASSIGN_OR_RETURN(
      worker::GenerateRequest request,
      ParseGenerateRequest(message, {options_.model.context_tokens(), model_stop_ids_}));
  request.deadline = MonotonicDeadline(context->deadline(), *options_.clock);
  const SessionId session = request.session;
  const RequestId id = request.id;
  {
    MutexLock lock(mutex_);
    // Another live request has the id: its own entry must not be forgotten with this one's refusal.
    const auto known = live_.find(session);
    if (known != live_.end() && known->second.contains(id)) {
      return WithDetails(absl::AbortedError("a live request has this id"), {.field = "request_id"});
    }
    live_[session].emplace(id, sink.get());
  }
  const absl::Status status = options_.engine->Submit(std::move(request), std::move(sink));
  if (!status.ok()) Forget(session, id);
  return status;
}

grpc::ServerWriteReactor<v1::WorkerGenerateResponse>* WorkerService::Generate(
    grpc::CallbackServerContext* context, const v1::WorkerGenerateRequest* request) {
  const RequestId id(request->request_id());
  const SessionId session(request->session_id());
  const auto stream = GenerateStream::Create(
      {.context = context,
       .relay = options_.relay,
       .attempt = request->attempt(),
       .incarnation = options_.model.incarnation(),
       .prompt_tokens = request->prompt_ids_size(),
       .cancel = [engine = options_.engine,
                  id](const worker::TokenSink* sink) { engine->Cancel(id, sink); },
       .on_finished =
           [this, session, id](const worker::FinishInfo& info) {
             options_.metrics->worker_requests_total[static_cast<size_t>(info.reason)]->Increment();
             Forget(session, id);
           }});
  const absl::Status status = Submit(*request, context, stream);
  if (status.ok()) {
    stream->Begin();
  } else {
    stream->Refuse(status);
  }
  return stream.get();
}

void WorkerService::Forget(const SessionId& session, const RequestId& request) {
  {
    MutexLock lock(mutex_);
    const auto found = live_.find(session);
    if (found != live_.end()) {
      found->second.erase(request);
      if (found->second.empty()) live_.erase(found);
    }
  }
  request_ended_.NotifyAll();
}

void WorkerService::CancelSession(const SessionId& session) {
  MutexLock lock(mutex_);
  const auto found = live_.find(session);
  if (found == live_.end()) return;
  for (const auto& [request, sink] : found->second) options_.engine->Cancel(request, sink);
}

grpc::Status WorkerService::GetModel(grpc::ServerContext*, const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) {
  *response = model_;
  if (request->known_fingerprint() != model_.fingerprint()) {
    *response->mutable_vocabulary() = options_.model.vocabulary();
  }
  return grpc::Status::OK;
}

grpc::Status WorkerService::GetLoad(grpc::ServerContext*, const v1::GetLoadRequest*,
                                    v1::GetLoadResponse* response) {
  *response->mutable_load() = ToProto(options_.engine->load());
  response->set_incarnation(options_.model.incarnation());
  response->set_worker_id(options_.model.worker_id());
  return grpc::Status::OK;
}

bool WorkerService::WaitUntilIdle(std::chrono::steady_clock::time_point deadline,
                                  const std::function<bool()>& cancelled) {
  MutexLock lock(mutex_);
  while (!options_.engine->idle()) {
    const auto now = std::chrono::steady_clock::now();
    if (now >= deadline || cancelled()) return false;
    // The engine frees an id just before it tells the end; a cancelled call is noticed this late.
    request_ended_.WaitUntil(mutex_, std::min(deadline, now + std::chrono::milliseconds(50)));
  }
  return true;
}

grpc::Status WorkerService::Drain(grpc::ServerContext* context, const v1::DrainRequest* request,
                                  v1::DrainResponse* response) {
  const std::chrono::milliseconds timeout(request->timeout_ms());
  if (timeout < std::chrono::milliseconds(0) || timeout > kMaxDrainTime) {
    return ToGrpc(InvalidField("timeout_ms", "must be 0 .. 600,000"), context);
  }
  options_.engine->BeginDrain();
  if (options_.on_drain) options_.on_drain();
  if (drain_calls_.fetch_add(1) >= kMaxDrainCalls) {
    drain_calls_.fetch_sub(1);
    return ToGrpc(Overloaded("as many drain calls wait as may", 1'000), context);
  }
  response->set_drained(WaitUntilIdle(std::chrono::steady_clock::now() + timeout,
                                      [context] { return context->IsCancelled(); }));
  drain_calls_.fetch_sub(1);
  response->set_running_sequences(options_.engine->load().running_sequences);
  return grpc::Status::OK;
}

grpc::Status WorkerService::ExportSession(grpc::ServerContext* context,
                                          const v1::WorkerExportRequest* request,
                                          grpc::ServerWriter<v1::WorkerExportResponse>* writer) {
  return ToGrpc(transfer_.Export(*request, writer), context);
}

grpc::Status WorkerService::ImportSession(
    grpc::ServerContext* context,
    grpc::ServerReaderWriter<v1::WorkerImportResponse, v1::WorkerImportRequest>* stream) {
  return ToGrpc(transfer_.Import(stream, stream), context);
}

}  // namespace kvist::services
