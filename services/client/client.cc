#include "services/client/client.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "services/runtime/address.h"
#include "services/runtime/role_server.h"
#include "services/runtime/status_map.h"

namespace kvist::services {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kUnaryTimeout{15'000};
constexpr int32_t kMostSamples = 1024;  // that room is made for, whatever the server allows
constexpr int kPageSize = 1000;         // the largest the manager takes

void TakeDelta(const v1::Delta& delta, Generated* generated) {
  const auto sample = static_cast<size_t>(delta.sample());
  if (sample < generated->samples.size()) {
    generated->samples[sample].text += delta.text();
    generated->samples[sample].tokens.insert(generated->samples[sample].tokens.end(),
                                             delta.tokens().begin(), delta.tokens().end());
  }
  if (sample != 0) return;
  generated->text += delta.text();
  generated->tokens.insert(generated->tokens.end(), delta.tokens().begin(), delta.tokens().end());
}

void TakeEnd(const v1::SampleFinished& finished, Generated* generated) {
  const auto sample = static_cast<size_t>(finished.sample());
  if (sample < generated->samples.size()) generated->samples[sample].finished = finished;
}

template <typename Stub, typename Request, typename Response>
absl::StatusOr<Response> Call(Stub& stub,
                              grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                           Response*),
                              const Request& request) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kUnaryTimeout);
  Response response;
  const grpc::Status status = (stub.*method)(&context, request, &response);
  if (!status.ok()) return FromGrpc(status, context);
  return response;
}

}  // namespace

void Cancellation::Cancel() {
  MutexLock lock(mutex_);
  cancelled_ = true;
  if (context_ != nullptr) context_->TryCancel();
}

void Cancellation::Reset() {
  MutexLock lock(mutex_);
  cancelled_ = false;
}

bool Cancellation::cancelled() const {
  MutexLock lock(mutex_);
  return cancelled_;
}

void Cancellation::Attach(grpc::ClientContext* context) {
  MutexLock lock(mutex_);
  context_ = context;
  if (cancelled_) context_->TryCancel();
}

void Cancellation::Detach() {
  MutexLock lock(mutex_);
  context_ = nullptr;
}

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const std::string& endpoint,
                                                        milliseconds timeout) {
  KVIST_RETURN_IF_ERROR(ParseHostPort(endpoint, "--endpoint").status());
  std::shared_ptr<grpc::Channel> channel = ConnectTo(endpoint);
  // Nobody listening is known after the first try; waiting for the whole timeout would only be
  // slow.
  const auto until = std::chrono::system_clock::now() + timeout;
  grpc_connectivity_state state = channel->GetState(/*try_to_connect=*/true);
  while (state != GRPC_CHANNEL_READY) {
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE || !channel->WaitForStateChange(state, until)) {
      return absl::UnavailableError(absl::StrCat("no server answers at ", endpoint));
    }
    state = channel->GetState(/*try_to_connect=*/true);
  }
  return std::make_unique<Client>(std::move(channel));
}

Client::Client(std::shared_ptr<grpc::Channel> channel)
    : inference_(v1::Inference::NewStub(channel)),
      sessions_(v1::Sessions::NewStub(channel)),
      manager_(v1::CacheManager::NewStub(channel)) {}

template <typename Reader>
absl::Status Client::ReadAll(Reader reader, grpc::ClientContext& context,
                             const GenerateOptions& options, Generated* generated) {
  if (options.cancellation != nullptr) options.cancellation->Attach(&context);
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
    switch (response.event_case()) {
      case v1::GenerateResponse::kStarted:
        generated->started = response.started();
        if (options.on_started) options.on_started(response.started());
        break;
      case v1::GenerateResponse::kProgress:
        if (options.on_progress) options.on_progress(response.progress());
        break;
      case v1::GenerateResponse::kDelta:
        TakeDelta(response.delta(), generated);
        if (options.on_delta) options.on_delta(response.delta());
        break;
      case v1::GenerateResponse::kSampleFinished:
        TakeEnd(response.sample_finished(), generated);
        break;
      case v1::GenerateResponse::kFinished:
        generated->finished = response.finished();
        break;
      case v1::GenerateResponse::EVENT_NOT_SET:
        break;
    }
  }
  if (options.cancellation != nullptr) options.cancellation->Detach();
  const grpc::Status status = reader->Finish();
  if (!status.ok()) return FromGrpc(status, context);
  if (generated->finished.reason() != v1::FINISH_REASON_UNSPECIFIED) return absl::OkStatus();
  return absl::DataLossError("the stream ended without its last message");
}

absl::Status Client::Generate(const v1::GenerateRequest& request, const GenerateOptions& options,
                              Generated* generated) {
  *generated = {};
  // The server refuses more than a few.
  if (request.samples() > 1) generated->samples.resize(std::min(request.samples(), kMostSamples));
  grpc::ClientContext context;
  if (options.timeout.count() > 0) {
    context.set_deadline(std::chrono::system_clock::now() + options.timeout);
  }
  return ReadAll(inference_->Generate(&context, request), context, options, generated);
}

absl::Status Client::Resume(const v1::ResumeRequest& request, const GenerateOptions& options,
                            Generated* generated) {
  *generated = {};
  grpc::ClientContext context;
  if (options.timeout.count() > 0) {
    context.set_deadline(std::chrono::system_clock::now() + options.timeout);
  }
  return ReadAll(inference_->Resume(&context, request), context, options, generated);
}

absl::StatusOr<v1::ListModelsResponse> Client::ListModels() {
  return Call(*inference_, &v1::Inference::Stub::ListModels, v1::ListModelsRequest());
}

absl::StatusOr<v1::Session> Client::CreateSession(const v1::CreateSessionRequest& request) {
  return Call(*sessions_, &v1::Sessions::Stub::Create, request);
}

absl::StatusOr<v1::Session> Client::GetSession(const v1::GetSessionRequest& request) {
  return Call(*sessions_, &v1::Sessions::Stub::Get, request);
}

absl::StatusOr<std::vector<v1::Session>> Client::ListSessions() {
  std::vector<v1::Session> sessions;
  v1::ListSessionsRequest request;
  request.set_page_size(kPageSize);
  do {
    KVIST_ASSIGN_OR_RETURN(const v1::ListSessionsResponse page,
                           Call(*sessions_, &v1::Sessions::Stub::List, request));
    sessions.insert(sessions.end(), page.sessions().begin(), page.sessions().end());
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return sessions;
}

absl::StatusOr<v1::Session> Client::ResetSession(const v1::ResetSessionRequest& request) {
  return Call(*sessions_, &v1::Sessions::Stub::Reset, request);
}

absl::StatusOr<v1::Session> Client::TruncateSession(const v1::TruncateSessionRequest& request) {
  return Call(*sessions_, &v1::Sessions::Stub::Truncate, request);
}

absl::StatusOr<v1::Session> Client::ForkSession(const v1::ForkSessionRequest& request) {
  return Call(*sessions_, &v1::Sessions::Stub::Fork, request);
}

absl::Status Client::DeleteSession(const std::string& id) {
  v1::DeleteSessionRequest request;
  request.set_id(id);
  return Call(*sessions_, &v1::Sessions::Stub::Delete, request).status();
}

absl::Status Client::ExportSession(const std::string& id, const ExportOptions& options) {
  grpc::ClientContext context;
  v1::ExportSessionRequest request;
  request.set_id(id);
  if (options.cancellation != nullptr) options.cancellation->Attach(&context);
  const auto reader = sessions_->Export(&context, request);
  v1::ExportSessionResponse response;
  bool wanted = true;
  while (wanted && reader->Read(&response)) {
    if (response.has_facts() && options.on_facts) options.on_facts(response.facts());
    if (!response.data().empty()) wanted = options.on_data(response.data());
  }
  if (!wanted) context.TryCancel();
  while (!wanted && reader->Read(&response)) continue;  // else Finish would wait for it
  if (options.cancellation != nullptr) options.cancellation->Detach();
  return FromGrpc(reader->Finish(), context);
}

absl::StatusOr<v1::ImportSessionResponse> Client::ImportSession(const std::string& id,
                                                                const ImportOptions& options) {
  grpc::ClientContext context;
  v1::ImportSessionResponse response;
  if (options.cancellation != nullptr) options.cancellation->Attach(&context);
  const auto writer = sessions_->Import(&context, &response);
  v1::ImportSessionRequest request;
  request.mutable_start()->set_id(id);
  // A write that fails has its reason in the status.
  bool more = writer->Write(request);
  while (more) {
    options.next_data(request.mutable_data());
    more = !request.data().empty() && writer->Write(request);
  }
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  if (options.cancellation != nullptr) options.cancellation->Detach();
  if (!status.ok()) return FromGrpc(status, context);
  return response;
}

absl::StatusOr<std::vector<v1::SessionMemory>> Client::SessionMemoryOf(const std::string& id) {
  std::vector<v1::SessionMemory> sessions;
  v1::GetSessionMemoryRequest request;
  request.set_session_id(id);
  request.set_page_size(kPageSize);
  do {
    KVIST_ASSIGN_OR_RETURN(const v1::GetSessionMemoryResponse page,
                           Call(*manager_, &v1::CacheManager::Stub::GetSessionMemory, request));
    sessions.insert(sessions.end(), page.sessions().begin(), page.sessions().end());
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return sessions;
}

absl::StatusOr<std::vector<v1::BlockInfo>> Client::ListBlocks(const std::string& worker_id,
                                                              size_t limit) {
  std::vector<v1::BlockInfo> blocks;
  v1::ListBlocksRequest request;
  request.set_worker_id(worker_id);
  do {
    const size_t left = limit - blocks.size();
    request.set_page_size(static_cast<int32_t>(std::min<size_t>(left, kPageSize)));
    KVIST_ASSIGN_OR_RETURN(const v1::ListBlocksResponse page,
                           Call(*manager_, &v1::CacheManager::Stub::ListBlocks, request));
    blocks.insert(blocks.end(), page.blocks().begin(), page.blocks().end());
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty() && blocks.size() < limit);
  return blocks;
}

absl::StatusOr<v1::GetStatsResponse> Client::GetStats() {
  return Call(*manager_, &v1::CacheManager::Stub::GetStats, v1::GetStatsRequest());
}

absl::StatusOr<v1::EvictResponse> Client::Evict(const v1::EvictRequest& request) {
  return Call(*manager_, &v1::CacheManager::Stub::Evict, request);
}

std::string AdviceFor(const absl::Status& status) {
  const ErrorDetails details = DetailsOf(status);
  switch (details.reason) {
    case ErrorReason::kQuota:
    case ErrorReason::kOverload:
      return absl::StrCat("Try again in ", std::max<int64_t>(1, details.retry_after_ms / 1000),
                          " s.");
    case ErrorReason::kNoWorker:
      return "Start a worker (kvist worker --model FILE), or wait until one has loaded its model.";
    case ErrorReason::kDraining:
      return "The server is shutting down; try again in a moment.";
    case ErrorReason::kNoManager:
      return "Sessions need the cache manager (kvist cache-manager); without a session it works.";
    case ErrorReason::kUnspecified:
      break;
  }
  if (absl::IsUnavailable(status)) {
    return "Start a server with: kvist serve --model smollm2. Or name another with --endpoint.";
  }
  if (absl::IsAborted(status) && details.resume_index < 0) {
    return "Another turn of the session is open, or it changed meanwhile; look again and retry.";
  }
  return {};
}

}  // namespace kvist::services
