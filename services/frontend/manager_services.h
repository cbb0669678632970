// What the frontend passes on to the cache manager, so that users need one address: the Sessions
// service and the calls of CacheManager that people make.
#ifndef KVIST_SERVICES_FRONTEND_MANAGER_SERVICES_H_
#define KVIST_SERVICES_FRONTEND_MANAGER_SERVICES_H_

#include "proto/kvist/v1/cache_manager.grpc.pb.h"
#include "proto/kvist/v1/session.grpc.pb.h"
#include "services/frontend/frontend_state.h"

namespace kvist::services {

// Ids and limits are checked here, the rest at the manager. UNAVAILABLE (kNoManager) if it does not
// answer. Thread-safe.
class SessionsProxy final : public v1::Sessions::Service {
 public:
  // REQUIRES: state outlives it.
  explicit SessionsProxy(FrontendState* state) : state_(state) {}

  grpc::Status Create(grpc::ServerContext* context, const v1::CreateSessionRequest* request,
                      v1::Session* response) override;
  grpc::Status Get(grpc::ServerContext* context, const v1::GetSessionRequest* request,
                   v1::Session* response) override;
  grpc::Status List(grpc::ServerContext* context, const v1::ListSessionsRequest* request,
                    v1::ListSessionsResponse* response) override;
  grpc::Status Reset(grpc::ServerContext* context, const v1::ResetSessionRequest* request,
                     v1::Session* response) override;
  grpc::Status Truncate(grpc::ServerContext* context, const v1::TruncateSessionRequest* request,
                        v1::Session* response) override;
  grpc::Status Fork(grpc::ServerContext* context, const v1::ForkSessionRequest* request,
                    v1::Session* response) override;
  // Also ends the session's turn, if this frontend runs it.
  grpc::Status Delete(grpc::ServerContext* context, const v1::DeleteSessionRequest* request,
                      v1::DeleteSessionResponse* response) override;
  // By session_files.h.
  grpc::Status Export(grpc::ServerContext* context, const v1::ExportSessionRequest* request,
                      grpc::ServerWriter<v1::ExportSessionResponse>* writer) override;
  grpc::Status Import(grpc::ServerContext* context,
                      grpc::ServerReader<v1::ImportSessionRequest>* reader,
                      v1::ImportSessionResponse* response) override;

 private:
  FrontendState* const state_;
};

// The calls between services (WorkerStream, Locate, turns) are UNIMPLEMENTED here. Thread-safe.
class MemoryProxy final : public v1::CacheManager::Service {
 public:
  // REQUIRES: state outlives it.
  explicit MemoryProxy(FrontendState* state) : state_(state) {}

  grpc::Status ListWorkers(grpc::ServerContext* context, const v1::ListWorkersRequest* request,
                           v1::ListWorkersResponse* response) override;
  grpc::Status GetSessionMemory(grpc::ServerContext* context,
                                const v1::GetSessionMemoryRequest* request,
                                v1::GetSessionMemoryResponse* response) override;
  grpc::Status ListBlocks(grpc::ServerContext* context, const v1::ListBlocksRequest* request,
                          v1::ListBlocksResponse* response) override;
  grpc::Status GetStats(grpc::ServerContext* context, const v1::GetStatsRequest* request,
                        v1::GetStatsResponse* response) override;
  grpc::Status Evict(grpc::ServerContext* context, const v1::EvictRequest* request,
                     v1::EvictResponse* response) override;

 private:
  FrontendState* const state_;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_MANAGER_SERVICES_H_
