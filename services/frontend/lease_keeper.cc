#include "services/frontend/lease_keeper.h"

#include <string>

#include "common/base/logging.h"
#include "services/frontend/session_turn.h"

namespace kvist::services {

LeaseKeeper::~LeaseKeeper() { Stop(); }

void LeaseKeeper::Start(std::chrono::milliseconds interval) {
  thread_ = std::thread([this, interval] { Loop(interval); });
}

void LeaseKeeper::Stop() {
  {
    MutexLock lock(mutex_);
    stop_ = true;
    wake_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

void LeaseKeeper::Loop(std::chrono::milliseconds interval) {
  while (true) {
    {
      MutexLock lock(mutex_);
      const auto next = std::chrono::steady_clock::now() + interval;
      while (!stop_ && wake_.WaitUntil(mutex_, next)) {
      }
      if (stop_) return;
    }
    RenewAll();
  }
}

void LeaseKeeper::RenewAll() {
  for (const auto& [session, turn] : running_->All()) {
    const absl::Status status = manager_->RenewTurn(session, turn, SessionTurn::kLease);
    if (status.ok() || absl::IsAborted(status) || absl::IsNotFound(status)) continue;
    LogWarning("leases of turns could not be renewed: {}", std::string(status.message()));
    return;  // the next round tries again
  }
}

}  // namespace kvist::services
