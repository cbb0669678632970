// One role's server: a gRPC server with health and reflection, and an HTTP port with /metrics,
// /healthz (alive) and /readyz (ready to serve).
#ifndef KVIST_SERVICES_RUNTIME_ROLE_SERVER_H_
#define KVIST_SERVICES_RUNTIME_ROLE_SERVER_H_

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "prometheus/registry.h"

namespace kvist::services {

struct RoleServerOptions {
  std::string role;                          // "frontend", "cache-manager", "worker": for logs
  std::string grpc_address = "127.0.0.1:0";  // host:port, port 0 picks a free one; empty: no
                                             // network port (in process only)
  std::string metrics_address;               // host:port; empty: no HTTP port
  bool insecure = false;                     // allows an address that is not loopback without TLS
  int max_message_bytes = 16 << 20;
  // Threads of the synchronous handlers, streams included; a call beyond them gets
  // RESOURCE_EXHAUSTED.
  int max_threads = 512;
  std::shared_ptr<prometheus::Registry> registry;  // null: an empty one
};

// Thread-safe. Owns the servers; does not own the services, which must outlive it.
class RoleServer {
 public:
  // INVALID_ARGUMENT for a malformed or unprotected address; UNAVAILABLE "--grpc ADDRESS: the port
  // is in use" (or
  // --metrics). Also raises the process's limit of open files.
  static absl::StatusOr<std::unique_ptr<RoleServer>> Start(
      const RoleServerOptions& options, const std::vector<grpc::Service*>& services);
  virtual ~RoleServer() = default;

  virtual const std::string& grpc_address() const = 0;     // with the port chosen
  virtual const std::string& metrics_address() const = 0;  // empty if there is none
  // gRPC health (NOT_SERVING until true) and /readyz.
  virtual void SetReady(bool ready) = 0;
  // A channel inside the process.
  virtual std::shared_ptr<grpc::Channel> InProcessChannel() = 0;
  // Readiness off; waits for calls to end until `grace` has passed, then cancels them. Idempotent.
  virtual void Shutdown(std::chrono::milliseconds grace) = 0;
};

// Channel between roles: reconnect backoff 100 ms to 1 s, keepalive on, message limit as the
// server's.
std::shared_ptr<grpc::Channel> ConnectTo(const std::string& address);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_RUNTIME_ROLE_SERVER_H_
