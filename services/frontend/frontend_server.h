// The frontend role: Inference and Sessions for users; routing, sessions' turns, text.
#ifndef KVIST_SERVICES_FRONTEND_FRONTEND_SERVER_H_
#define KVIST_SERVICES_FRONTEND_FRONTEND_SERVER_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/runtime/role_server.h"

namespace kvist::services {

struct FrontendServerOptions {
  std::string cache_manager_address;          // "host:port"; empty: none, so no sessions
  std::vector<std::string> worker_addresses;  // beside those the manager knows; may be empty
  // Salts tenants' prefix caches; empty: a fixed development secret, logged once.
  std::string cluster_secret;
  // Takes blocks from session files that other clusters sealed. Without a secret the own seal is
  // public too: it is then believed only where nobody but this machine can connect.
  bool trust_snapshots = false;
  // Admitted at once, queued ones included; one more is refused. Each holds a thread.
  int32_t max_running_requests = 256;
  int64_t default_deadline_ms = 600'000;  // for calls that carry none
  // Read ahead of a client. One that reads slower makes its worker wait, and is closed once a write
  // to it has waited for slow_client_patience_ms.
  size_t max_buffered_bytes_per_client = 1 << 20;
  int64_t slow_client_patience_ms = 30'000;
  int64_t worker_silence_limit_ms = 3000;  // a worker that sends nothing for so long is lost
  // A request whose workers are gone waits so long for another before it is given up.
  int64_t replay_wait_ms = 15'000;
  RoleServerOptions server;
};

// Thread-safe.
class FrontendServer {
 public:
  // Ready (RoleServer::SetReady) once it knows a worker and its model. INVALID_ARGUMENT for limits
  // below 1; errors as RoleServer::Start.
  static absl::StatusOr<std::unique_ptr<FrontendServer>> Start(
      const FrontendServerOptions& options);
  virtual ~FrontendServer() = default;
  virtual RoleServer& server() = 0;
  // Waits until the frontend is ready. false: `timeout` passed first.
  virtual bool WaitUntilReady(std::chrono::milliseconds timeout) = 0;
  // New requests are refused; running ones may end within `grace`. Idempotent.
  virtual void Shutdown(std::chrono::milliseconds grace) = 0;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_FRONTEND_SERVER_H_
