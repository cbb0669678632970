// A cache manager over real gRPC that answers what a test says and keeps what it was asked.
#ifndef KVIST_TESTS_SERVICES_FRONTEND_FAKE_MANAGER_H_
#define KVIST_TESTS_SERVICES_FRONTEND_FAKE_MANAGER_H_

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/base/mutex.h"
#include "proto/kvist/v1/cache_manager.grpc.pb.h"
#include "services/runtime/role_server.h"

namespace kvist::services {

// Serves on a port of its own. Thread-safe; the answers are set before anybody asks.
class FakeManager final : public v1::CacheManager::Service {
 public:
  FakeManager() {
    server_ = RoleServer::Start({.role = "cache-manager"}, {this}).value();
    server_->SetReady(true);
  }
  ~FakeManager() override { server_->Shutdown(std::chrono::milliseconds(0)); }

  const std::string& address() const { return server_->grpc_address(); }
  std::shared_ptr<grpc::Channel> channel() { return server_->InProcessChannel(); }

  // What it was asked so far.
  struct Calls {
    std::vector<v1::BeginTurnRequest> begins;  // renewals are among them
    std::vector<v1::EndTurnRequest> ends;
    std::vector<v1::LocateRequest> locates;
  };
  Calls calls() const ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    return calls_;
  }
  // Waits until `condition` holds for the calls so far. false: a minute has passed.
  bool WaitUntil(const std::function<bool(const Calls&)>& condition) const
      ABSL_LOCKS_EXCLUDED(mutex_) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    MutexLock lock(mutex_);
    while (!condition(calls_)) {
      if (!called_.WaitUntil(mutex_, until)) return condition(calls_);
    }
    return true;
  }

  std::function<grpc::Status(const v1::BeginTurnRequest&, v1::BeginTurnResponse*)> on_begin;
  std::function<grpc::Status(const v1::LocateRequest&, v1::LocateResponse*)> on_locate;
  std::vector<v1::WorkerInfo> workers;

  grpc::Status BeginTurn(grpc::ServerContext*, const v1::BeginTurnRequest* request,
                         v1::BeginTurnResponse* response) override {
    const grpc::Status status = on_begin ? on_begin(*request, response) : grpc::Status::OK;
    Keep(&Calls::begins, *request);
    return status;
  }
  grpc::Status EndTurn(grpc::ServerContext*, const v1::EndTurnRequest* request,
                       v1::EndTurnResponse*) override {
    Keep(&Calls::ends, *request);
    return grpc::Status::OK;
  }
  grpc::Status Locate(grpc::ServerContext*, const v1::LocateRequest* request,
                      v1::LocateResponse* response) override {
    const grpc::Status status = on_locate ? on_locate(*request, response) : grpc::Status::OK;
    Keep(&Calls::locates, *request);
    return status;
  }
  grpc::Status ListWorkers(grpc::ServerContext*, const v1::ListWorkersRequest*,
                           v1::ListWorkersResponse* response) override {
    for (const v1::WorkerInfo& info : workers) *response->add_workers() = info;
    return grpc::Status::OK;
  }

 private:
  template <typename Request>
  void Keep(std::vector<Request> Calls::*list, const Request& request) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    (calls_.*list).push_back(request);
    called_.NotifyAll();
  }

  mutable Mutex mutex_;
  mutable CondVar called_;
  Calls calls_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<RoleServer> server_;
};

}  // namespace kvist::services

#endif  // KVIST_TESTS_SERVICES_FRONTEND_FAKE_MANAGER_H_
