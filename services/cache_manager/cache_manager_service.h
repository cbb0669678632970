// The gRPC services of the cache manager over its cluster and its turn book.
#ifndef KVIST_SERVICES_CACHE_MANAGER_CACHE_MANAGER_SERVICE_H_
#define KVIST_SERVICES_CACHE_MANAGER_CACHE_MANAGER_SERVICE_H_

#include "proto/kvist/v1/cache_manager.grpc.pb.h"
#include "proto/kvist/v1/session.grpc.pb.h"
#include "services/cache_manager/cluster.h"
#include "services/cache_manager/turn_book.h"

namespace kvist::services {

// Worker streams are callbacks (they live for days and hold no thread); the rest is synchronous.
// Thread-safe. REQUIRES: cluster, book and metrics outlive it.
class CacheManagerService final
    : public v1::CacheManager::WithCallbackMethod_WorkerStream<v1::CacheManager::Service> {
 public:
  CacheManagerService(Cluster* cluster, TurnBook* book, ManagerMetrics* metrics)
      : cluster_(cluster), book_(book), metrics_(metrics) {}

  grpc::ServerBidiReactor<v1::WorkerMessage, v1::ManagerMessage>* WorkerStream(
      grpc::CallbackServerContext* context) override;
  grpc::Status Locate(grpc::ServerContext* context, const v1::LocateRequest* request,
                      v1::LocateResponse* response) override;
  grpc::Status BeginTurn(grpc::ServerContext* context, const v1::BeginTurnRequest* request,
                         v1::BeginTurnResponse* response) override;
  grpc::Status EndTurn(grpc::ServerContext* context, const v1::EndTurnRequest* request,
                       v1::EndTurnResponse* response) override;
  grpc::Status GetTurn(grpc::ServerContext* context, const v1::GetTurnRequest* request,
                       v1::GetTurnResponse* response) override;
  grpc::Status RestoreSession(grpc::ServerContext* context,
                              const v1::RestoreSessionRequest* request,
                              v1::Session* response) override;
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
  absl::StatusOr<v1::GetSessionMemoryResponse> SessionMemory(
      const v1::GetSessionMemoryRequest& request);
  absl::StatusOr<v1::ListBlocksResponse> Blocks(const v1::ListBlocksRequest& request);

  Cluster* const cluster_;
  TurnBook* const book_;
  ManagerMetrics* const metrics_;
};

// Thread-safe. REQUIRES: cluster and book outlive it.
class SessionsService final : public v1::Sessions::Service {
 public:
  SessionsService(Cluster* cluster, TurnBook* book) : cluster_(cluster), book_(book) {}

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
  grpc::Status Delete(grpc::ServerContext* context, const v1::DeleteSessionRequest* request,
                      v1::DeleteSessionResponse* response) override;

 private:
  Cluster* const cluster_;
  TurnBook* const book_;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CACHE_MANAGER_CACHE_MANAGER_SERVICE_H_
