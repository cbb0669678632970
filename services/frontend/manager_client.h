// The cache manager as the frontend calls it: short deadlines, and one meaning for "it is not
// there".
#ifndef KVIST_SERVICES_FRONTEND_MANAGER_CLIENT_H_
#define KVIST_SERVICES_FRONTEND_MANAGER_CLIENT_H_

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/clock.h"
#include "common/base/ids.h"
#include "common/base/status.h"
#include "proto/kvist/v1/cache_manager.grpc.pb.h"
#include "proto/kvist/v1/session.grpc.pb.h"
#include "services/runtime/status_map.h"

namespace kvist::services {

// What became of a turn's tokens.
struct TurnSaved {
  bool saved = false;
  uint64_t version = 0;  // of the session, if saved
  absl::Status status;   // why not
};

// Thread-safe.
class ManagerClient {
 public:
  // `channel` may be null: then every call is UNAVAILABLE (kNoManager).
  explicit ManagerClient(std::shared_ptr<grpc::Channel> channel);

  bool configured() const { return manager_ != nullptr; }

  // For routing: gives up after 300 ms, because a request can go on without.
  absl::StatusOr<v1::LocateResponse> Locate(const v1::LocateRequest& request);
  absl::StatusOr<v1::ListWorkersResponse> ListWorkers();
  // The manager's own errors; UNAVAILABLE (kNoManager) if it cannot be reached.
  absl::StatusOr<v1::BeginTurnResponse> BeginTurn(const v1::BeginTurnRequest& request);
  // Lets an open turn live so much longer. ABORTED: it is not open. Else as BeginTurn.
  absl::Status RenewTurn(const SessionId& session, const TurnId& turn,
                         std::chrono::milliseconds lease);
  absl::StatusOr<v1::GetTurnResponse> GetTurn(const v1::GetTurnRequest& request);
  // Tries again until `until` while the manager or its store is away.
  TurnSaved EndTurn(const v1::EndTurnRequest& request, MonotonicTime until);

  // Passes a call on. Errors as BeginTurn.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::CacheManager::StubInterface::*method)(
                                    grpc::ClientContext*, const Request&, Response*),
                                const Request& request) {
    return CallOn(manager_.get(), method, request, kUnaryDeadline);
  }
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::Sessions::StubInterface::*method)(
                                    grpc::ClientContext*, const Request&, Response*),
                                const Request& request) {
    return CallOn(sessions_.get(), method, request, kUnaryDeadline);
  }

 private:
  static constexpr std::chrono::milliseconds kUnaryDeadline{5000};

  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> CallOn(Stub* stub,
                                  grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                               Response*),
                                  const Request& request, std::chrono::milliseconds deadline) {
    if (stub == nullptr) {
      return Unavailable(ErrorReason::kNoManager, "no cache manager is configured");
    }
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + deadline);
    Response response;
    const grpc::Status status = (stub->*method)(&context, request, &response);
    if (!status.ok()) return NotThere(FromGrpc(status, context));
    return response;
  }
  // UNAVAILABLE and DEADLINE_EXCEEDED become UNAVAILABLE (kNoManager); others stay.
  static absl::Status NotThere(absl::Status status);

  std::unique_ptr<v1::CacheManager::StubInterface> manager_;
  std::unique_ptr<v1::Sessions::StubInterface> sessions_;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_MANAGER_CLIENT_H_
