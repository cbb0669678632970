#include "services/frontend/manager_client.h"

#include <algorithm>
#include <thread>

#include "common/base/logging.h"

namespace kvist::services {
namespace {

using std::chrono::milliseconds;
using Manager = v1::CacheManager::StubInterface;

constexpr milliseconds kLocateDeadline{300};
constexpr milliseconds kListDeadline{1000};
constexpr milliseconds kEndTurnTry{2000};
constexpr milliseconds kRenewDeadline{2000};
constexpr milliseconds kRetryPause{100};  // as the channel's first reconnect backoff

}  // namespace

ManagerClient::ManagerClient(std::shared_ptr<grpc::Channel> channel) {
  if (channel == nullptr) return;
  manager_ = v1::CacheManager::NewStub(channel);
  sessions_ = v1::Sessions::NewStub(channel);
}

absl::StatusOr<v1::LocateResponse> ManagerClient::Locate(const v1::LocateRequest& request) {
  return CallOn(manager_.get(), &Manager::Locate, request, kLocateDeadline);
}

absl::StatusOr<v1::ListWorkersResponse> ManagerClient::ListWorkers() {
  return CallOn(manager_.get(), &Manager::ListWorkers, v1::ListWorkersRequest(), kListDeadline);
}

absl::StatusOr<v1::BeginTurnResponse> ManagerClient::BeginTurn(
    const v1::BeginTurnRequest& request) {
  return Call(&Manager::BeginTurn, request);
}

absl::Status ManagerClient::RenewTurn(const SessionId& session, const TurnId& turn,
                                      milliseconds lease) {
  v1::BeginTurnRequest request;
  request.set_session_id(session.value());
  request.set_turn_id(turn.value());
  request.set_renew(true);
  request.set_lease_ms(lease.count());
  return CallOn(manager_.get(), &Manager::BeginTurn, request, kRenewDeadline).status();
}

absl::StatusOr<v1::GetTurnResponse> ManagerClient::GetTurn(const v1::GetTurnRequest& request) {
  return Call(&Manager::GetTurn, request);
}

TurnSaved ManagerClient::EndTurn(const v1::EndTurnRequest& request, MonotonicTime until) {
  // Ending a turn twice is the same as once, so a try whose answer was lost does no harm.
  while (true) {
    const auto ended = CallOn(manager_.get(), &Manager::EndTurn, request, kEndTurnTry);
    if (ended.ok()) return {.saved = true, .version = ended->version()};
    if (!absl::IsUnavailable(ended.status()) || manager_ == nullptr ||
        std::chrono::steady_clock::now() + kRetryPause >= until) {
      return {.saved = false, .version = 0, .status = ended.status()};
    }
    std::this_thread::sleep_for(kRetryPause);
  }
}

absl::Status ManagerClient::NotThere(absl::Status status) {
  if (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) return status;
  if (DetailsOf(status).reason != ErrorReason::kUnspecified) return status;
  // gRPC's own words have addresses in them, which are nobody's business outside.
  LogWarning("the cache manager does not answer: {}", std::string(status.message()));
  return Unavailable(ErrorReason::kNoManager, "the cache manager does not answer");
}

}  // namespace kvist::services
