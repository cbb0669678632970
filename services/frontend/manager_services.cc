#include "services/frontend/manager_services.h"

#include <optional>
#include <utility>

#include "cache_manager/limits.h"
#include "common/base/status.h"
#include "services/frontend/session_files.h"
#include "services/frontend/validate.h"
#include "services/runtime/cache_params.h"
#include "services/runtime/status_map.h"

namespace kvist::services {
namespace {

using SessionsStub = v1::Sessions::StubInterface;
using ManagerStub = v1::CacheManager::StubInterface;

template <typename Stub, typename Request, typename Response>
grpc::Status Pass(FrontendState* state, grpc::ServerContext* context,
                  grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                  const Request& request, Response* response) {
  auto answer = state->manager.Call(method, request);
  if (!answer.ok()) return ToGrpc(answer.status(), context);
  *response = *std::move(answer);
  return grpc::Status::OK;
}

// Where workers listen is nobody's business outside.
void HideAddresses(google::protobuf::RepeatedPtrField<v1::WorkerInfo>* workers) {
  for (v1::WorkerInfo& worker : *workers) worker.clear_address();
}

}  // namespace

grpc::Status SessionsProxy::Create(grpc::ServerContext* context,
                                   const v1::CreateSessionRequest* request, v1::Session* response) {
  absl::Status valid =
      request->id().empty() ? absl::OkStatus() : ValidateNewSessionId("id", request->id());
  if (valid.ok()) {
    valid = ValidateSessionTtl(
        request->has_ttl_seconds() ? std::optional<int64_t>(request->ttl_seconds()) : std::nullopt);
  }
  // The context is the turns' to check: the session has no model yet.
  if (valid.ok()) valid = ValidateCacheParams(request->cache(), cache_manager::kMaxWindowTokens);
  if (valid.ok()) valid = state_->directory.CheckServed(request->cache());
  if (!valid.ok()) return ToGrpc(valid, context);
  return Pass(state_, context, &SessionsStub::Create, *request, response);
}

grpc::Status SessionsProxy::Get(grpc::ServerContext* context, const v1::GetSessionRequest* request,
                                v1::Session* response) {
  if (auto valid = ValidateId("id", request->id()); !valid.ok()) return ToGrpc(valid, context);
  return Pass(state_, context, &SessionsStub::Get, *request, response);
}

grpc::Status SessionsProxy::List(grpc::ServerContext* context,
                                 const v1::ListSessionsRequest* request,
                                 v1::ListSessionsResponse* response) {
  return Pass(state_, context, &SessionsStub::List, *request, response);
}

grpc::Status SessionsProxy::Reset(grpc::ServerContext* context,
                                  const v1::ResetSessionRequest* request, v1::Session* response) {
  if (auto valid = ValidateId("id", request->id()); !valid.ok()) return ToGrpc(valid, context);
  return Pass(state_, context, &SessionsStub::Reset, *request, response);
}

grpc::Status SessionsProxy::Truncate(grpc::ServerContext* context,
                                     const v1::TruncateSessionRequest* request,
                                     v1::Session* response) {
  if (auto valid = ValidateId("id", request->id()); !valid.ok()) return ToGrpc(valid, context);
  return Pass(state_, context, &SessionsStub::Truncate, *request, response);
}

grpc::Status SessionsProxy::Fork(grpc::ServerContext* context,
                                 const v1::ForkSessionRequest* request, v1::Session* response) {
  absl::Status valid = ValidateId("id", request->id());
  if (valid.ok() && !request->new_id().empty()) {
    valid = ValidateNewSessionId("new_id", request->new_id());
  }
  if (!valid.ok()) return ToGrpc(valid, context);
  return Pass(state_, context, &SessionsStub::Fork, *request, response);
}

grpc::Status SessionsProxy::Delete(grpc::ServerContext* context,
                                   const v1::DeleteSessionRequest* request,
                                   v1::DeleteSessionResponse* response) {
  if (auto valid = ValidateId("id", request->id()); !valid.ok()) return ToGrpc(valid, context);
  const grpc::Status status = Pass(state_, context, &SessionsStub::Delete, *request, response);
  if (status.ok()) state_->running_turns.CancelSession(SessionId(request->id()));
  return status;
}

grpc::Status SessionsProxy::Export(grpc::ServerContext* context,
                                   const v1::ExportSessionRequest* request,
                                   grpc::ServerWriter<v1::ExportSessionResponse>* writer) {
  return ToGrpc(ExportSession(*state_, *request, context, writer), context);
}

grpc::Status SessionsProxy::Import(grpc::ServerContext* context,
                                   grpc::ServerReader<v1::ImportSessionRequest>* reader,
                                   v1::ImportSessionResponse* response) {
  return ToGrpc(ImportSession(*state_, context, reader, response), context);
}

grpc::Status MemoryProxy::ListWorkers(grpc::ServerContext* context,
                                      const v1::ListWorkersRequest* request,
                                      v1::ListWorkersResponse* response) {
  const grpc::Status status = Pass(state_, context, &ManagerStub::ListWorkers, *request, response);
  HideAddresses(response->mutable_workers());
  return status;
}

grpc::Status MemoryProxy::GetSessionMemory(grpc::ServerContext* context,
                                           const v1::GetSessionMemoryRequest* request,
                                           v1::GetSessionMemoryResponse* response) {
  return Pass(state_, context, &ManagerStub::GetSessionMemory, *request, response);
}

grpc::Status MemoryProxy::ListBlocks(grpc::ServerContext* context,
                                     const v1::ListBlocksRequest* request,
                                     v1::ListBlocksResponse* response) {
  return Pass(state_, context, &ManagerStub::ListBlocks, *request, response);
}

grpc::Status MemoryProxy::GetStats(grpc::ServerContext* context, const v1::GetStatsRequest* request,
                                   v1::GetStatsResponse* response) {
  const grpc::Status status = Pass(state_, context, &ManagerStub::GetStats, *request, response);
  HideAddresses(response->mutable_workers());
  return status;
}

grpc::Status MemoryProxy::Evict(grpc::ServerContext* context, const v1::EvictRequest* request,
                                v1::EvictResponse* response) {
  return Pass(state_, context, &ManagerStub::Evict, *request, response);
}

}  // namespace kvist::services
