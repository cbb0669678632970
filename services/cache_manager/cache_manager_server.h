// The cache-manager role: sessions over a store, the mirror of the workers, over gRPC (CacheManager
// and Sessions services).
#ifndef KVIST_SERVICES_CACHE_MANAGER_CACHE_MANAGER_SERVER_H_
#define KVIST_SERVICES_CACHE_MANAGER_CACHE_MANAGER_SERVER_H_

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/clock.h"
#include "services/runtime/role_server.h"

namespace kvist::services {

struct CacheManagerServerOptions {
  std::string data_dir;          // the embedded session store; empty: in memory only, gone at exit
  const Clock* clock = nullptr;  // outlives the server; null: the machine's
  RoleServerOptions server;
};

// Thread-safe.
class CacheManagerServer {
 public:
  // Errors as RoleServer::Start, and of the store (a damaged one is DATA_LOSS naming the file).
  static absl::StatusOr<std::unique_ptr<CacheManagerServer>> Start(
      const CacheManagerServerOptions& options);
  virtual ~CacheManagerServer() = default;
  virtual RoleServer& server() = 0;
  // Readiness off, worker streams end, other calls end or are cancelled after `grace`. Idempotent.
  virtual void Shutdown(std::chrono::milliseconds grace) = 0;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CACHE_MANAGER_CACHE_MANAGER_SERVER_H_
