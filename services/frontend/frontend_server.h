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
  std::string cache_manager_address;           // "host:port"
  std::vector<std::string> worker_addresses;   // beside those the manager knows; may be empty
  std::string cluster_secret;                  // salts tenants' prefix caches; empty: a fixed development secret, logged once
  int32_t max_running_requests = 256;          // admitted at once, queued ones included; one more is refused
  int64_t default_deadline_ms = 600'000;       // for calls that carry none
  size_t max_buffered_bytes_per_client = 1 << 20;  // a slower reader is paused, then closed
  RoleServerOptions server;
};

// Thread-safe.
class FrontendServer {
 public:
  static absl::StatusOr<std::unique_ptr<FrontendServer>> Start(const FrontendServerOptions& options);
  virtual ~FrontendServer() = default;
  virtual RoleServer& server() = 0;
  virtual void Shutdown(std::chrono::milliseconds grace) = 0;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_FRONTEND_SERVER_H_
