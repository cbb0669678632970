// Keeps the leases of the turns that this frontend runs, so that a session is free again soon after
// its frontend has died.
#ifndef KVIST_SERVICES_FRONTEND_LEASE_KEEPER_H_
#define KVIST_SERVICES_FRONTEND_LEASE_KEEPER_H_

#include <chrono>
#include <thread>

#include "common/base/mutex.h"
#include "services/frontend/manager_client.h"
#include "services/frontend/running_turns.h"

namespace kvist::services {

// Thread-compatible. Owns a thread between Start and Stop.
class LeaseKeeper {
 public:
  // REQUIRES: both outlive it.
  LeaseKeeper(ManagerClient* manager, const RunningTurns* running)
      : manager_(manager), running_(running) {}
  ~LeaseKeeper();

  // Renews every `interval`, which is a third of the lease or less: two tries may fail.
  void Start(std::chrono::milliseconds interval);
  void Stop();  // idempotent

 private:
  void Loop(std::chrono::milliseconds interval);
  void RenewAll();

  ManagerClient* const manager_;
  const RunningTurns* const running_;
  Mutex mutex_;
  CondVar wake_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_LEASE_KEEPER_H_
