#include "services/cache_manager/cache_manager_service.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "services/cache_manager/limits.h"
#include "services/cache_manager/worker_stream.h"
#include "services/runtime/id_syntax.h"
#include "services/runtime/status_map.h"

namespace kvist::services {
namespace {

template <typename Message>
grpc::Status Answer(absl::StatusOr<Message> result, grpc::ServerContext* context,
                    Message* response) {
  if (!result.ok()) return ToGrpc(result.status(), context);
  *response = *std::move(result);
  return grpc::Status::OK;
}

absl::StatusOr<int32_t> PageSize(int32_t asked, int32_t otherwise) {
  if (asked < 0 || asked > kMaxPageSize) {
    return InvalidField("page_size", absl::StrCat("must be 0 .. ", kMaxPageSize));
  }
  return asked == 0 ? otherwise : asked;
}

std::chrono::steady_clock::time_point Soon() {
  return std::chrono::steady_clock::now() + kSettlePatience;
}

}  // namespace

grpc::ServerBidiReactor<v1::WorkerMessage, v1::ManagerMessage>* CacheManagerService::WorkerStream(
    grpc::CallbackServerContext* context) {
  return services::WorkerStream::Start(context, cluster_);
}

grpc::Status CacheManagerService::Locate(grpc::ServerContext* context,
                                         const v1::LocateRequest* request,
                                         v1::LocateResponse* response) {
  const auto begin = std::chrono::steady_clock::now();
  auto result = cluster_->Locate(*request);
  metrics_->locate_seconds.Observe(SecondsBetween(begin, std::chrono::steady_clock::now()));
  return Answer(std::move(result), context, response);
}

grpc::Status CacheManagerService::BeginTurn(grpc::ServerContext* context,
                                            const v1::BeginTurnRequest* request,
                                            v1::BeginTurnResponse* response) {
  return Answer(book_->BeginTurn(*request), context, response);
}

grpc::Status CacheManagerService::EndTurn(grpc::ServerContext* context,
                                          const v1::EndTurnRequest* request,
                                          v1::EndTurnResponse* response) {
  return Answer(book_->EndTurn(*request), context, response);
}

grpc::Status CacheManagerService::GetTurn(grpc::ServerContext* context,
                                          const v1::GetTurnRequest* request,
                                          v1::GetTurnResponse* response) {
  return Answer(book_->GetTurn(*request), context, response);
}

grpc::Status CacheManagerService::RestoreSession(grpc::ServerContext* context,
                                                 const v1::RestoreSessionRequest* request,
                                                 v1::Session* response) {
  auto restored = book_->Restore(*request);
  // As in Create.
  if (restored.ok()) cluster_->ReleaseNamesake(SessionId(request->id()), Soon());
  return Answer(std::move(restored), context, response);
}

grpc::Status CacheManagerService::ListWorkers(grpc::ServerContext*, const v1::ListWorkersRequest*,
                                              v1::ListWorkersResponse* response) {
  *response = cluster_->ListWorkers();
  return grpc::Status::OK;
}

absl::StatusOr<v1::GetSessionMemoryResponse> CacheManagerService::SessionMemory(
    const v1::GetSessionMemoryRequest& request) {
  KVIST_RETURN_IF_ERROR(CheckId("session_id", request.session_id(), EmptyId::kAllowed));
  KVIST_RETURN_IF_ERROR(CheckId("page_token", request.page_token(), EmptyId::kAllowed));
  KVIST_ASSIGN_OR_RETURN(const int32_t size, PageSize(request.page_size(), kDefaultPageSize));
  v1::GetSessionMemoryResponse response;
  if (request.session_id().empty()) {
    KVIST_ASSIGN_OR_RETURN(response, cluster_->MemoryPage(request.page_token(), size));
  } else {
    auto memory = cluster_->MemoryOf(SessionId(request.session_id()));
    if (memory.ok()) {
      *response.add_sessions() = *std::move(memory);
    } else if (book_->Knows(SessionId(request.session_id()))) {  // it holds nothing now
      v1::SessionMemory* none = response.add_sessions();
      none->set_session_id(request.session_id());
      none->set_phase(v1::IDLE);
    } else {
      return memory.status();
    }
  }
  for (v1::SessionMemory& session : *response.mutable_sessions()) {
    session.set_implicit(!book_->Knows(SessionId(session.session_id())));
  }
  return response;
}

grpc::Status CacheManagerService::GetSessionMemory(grpc::ServerContext* context,
                                                   const v1::GetSessionMemoryRequest* request,
                                                   v1::GetSessionMemoryResponse* response) {
  return Answer(SessionMemory(*request), context, response);
}

absl::StatusOr<v1::ListBlocksResponse> CacheManagerService::Blocks(
    const v1::ListBlocksRequest& request) {
  KVIST_RETURN_IF_ERROR(CheckId("worker_id", request.worker_id(), EmptyId::kRefused));
  KVIST_RETURN_IF_ERROR(CheckId("session_id", request.session_id(), EmptyId::kAllowed));
  v1::ListBlocksRequest sized = request;
  KVIST_ASSIGN_OR_RETURN(const int32_t size, PageSize(request.page_size(), kDefaultBlocksPageSize));
  sized.set_page_size(size);
  return cluster_->ListBlocks(sized);
}

grpc::Status CacheManagerService::ListBlocks(grpc::ServerContext* context,
                                             const v1::ListBlocksRequest* request,
                                             v1::ListBlocksResponse* response) {
  return Answer(Blocks(*request), context, response);
}

grpc::Status CacheManagerService::GetStats(grpc::ServerContext* context, const v1::GetStatsRequest*,
                                           v1::GetStatsResponse* response) {
  const auto stored = book_->Count();
  if (!stored.ok()) return ToGrpc(stored.status(), context);
  *response = cluster_->Stats();
  response->set_sessions_stored(*stored);
  return grpc::Status::OK;
}

grpc::Status CacheManagerService::Evict(grpc::ServerContext* context,
                                        const v1::EvictRequest* request,
                                        v1::EvictResponse* response) {
  // The client's deadline, a little early so that the answer still reaches it.
  const auto left = context->deadline() - std::chrono::system_clock::now();
  auto patience = std::chrono::steady_clock::duration(kEvictPatience);
  if (left < kEvictPatience) patience = left * 9 / 10;
  return Answer(cluster_->Evict(*request, std::chrono::steady_clock::now() + patience), context,
                response);
}

grpc::Status SessionsService::Create(grpc::ServerContext* context,
                                     const v1::CreateSessionRequest* request,
                                     v1::Session* response) {
  auto created = book_->Create(*request);
  // Workers may yet hold blocks for an expired session of this id, which it replaced.
  if (created.ok() && !request->id().empty()) {
    cluster_->ReleaseNamesake(SessionId(request->id()), Soon());
  }
  return Answer(std::move(created), context, response);
}

grpc::Status SessionsService::Get(grpc::ServerContext* context,
                                  const v1::GetSessionRequest* request, v1::Session* response) {
  return Answer(book_->Get(*request), context, response);
}

grpc::Status SessionsService::List(grpc::ServerContext* context,
                                   const v1::ListSessionsRequest* request,
                                   v1::ListSessionsResponse* response) {
  return Answer(book_->List(*request), context, response);
}

grpc::Status SessionsService::Reset(grpc::ServerContext* context,
                                    const v1::ResetSessionRequest* request, v1::Session* response) {
  auto cut = book_->Reset(*request);
  if (cut.ok()) cluster_->CutSession(SessionId(request->id()), 0, Soon());
  return Answer(std::move(cut), context, response);
}

grpc::Status SessionsService::Truncate(grpc::ServerContext* context,
                                       const v1::TruncateSessionRequest* request,
                                       v1::Session* response) {
  auto cut = book_->Truncate(*request);
  // The first tokens keep their positions and so their blocks; the last ones get others.
  const auto kept = static_cast<uint64_t>(request->keep_first_tokens());
  if (cut.ok()) cluster_->CutSession(SessionId(request->id()), kept, Soon());
  return Answer(std::move(cut), context, response);
}

grpc::Status SessionsService::Fork(grpc::ServerContext* context,
                                   const v1::ForkSessionRequest* request, v1::Session* response) {
  auto forked = book_->Fork(*request);
  if (forked.ok()) {
    const SessionId id(forked->id());
    // As in Create.
    if (!request->new_id().empty()) cluster_->ReleaseNamesake(id, Soon());
    cluster_->ForkSession(SessionId(request->id()), id, Soon());
  }
  return Answer(std::move(forked), context, response);
}

grpc::Status SessionsService::Delete(grpc::ServerContext* context,
                                     const v1::DeleteSessionRequest* request,
                                     v1::DeleteSessionResponse*) {
  const absl::Status status = book_->Delete(*request);
  // The store first: a crash between the two leaves blocks that nobody continues, and never tokens.
  if (status.ok()) cluster_->ReleaseSession(SessionId(request->id()), Soon());
  return ToGrpc(status, context);
}

}  // namespace kvist::services
