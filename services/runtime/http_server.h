// The HTTP port of a role: /metrics for Prometheus, /healthz (alive), /readyz (ready to serve).
#ifndef KVIST_SERVICES_RUNTIME_HTTP_SERVER_H_
#define KVIST_SERVICES_RUNTIME_HTTP_SERVER_H_

#include <atomic>
#include <chrono>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "prometheus/registry.h"
#include "services/runtime/address.h"

namespace kvist::services {

struct HttpServerOptions {
  HostPort address;                                   // port 0 picks a free one
  std::shared_ptr<prometheus::Registry> registry;     // served as text at /metrics
  int max_connections = 64;                           // one more is closed at once
  std::chrono::milliseconds request_timeout{10'000};  // for a whole request, idle time included
};
inline constexpr int kMaxHttpHeaderBytes = 8192;

// Answers GET and HEAD on one thread. Thread-safe.
class HttpServer {
 public:
  // UNAVAILABLE if the address cannot be bound, naming it, the flag --metrics and the reason.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpServerOptions& options);
  virtual ~HttpServer() = default;  // closes all connections and joins the thread
  virtual const std::string& address() const = 0;
  virtual void SetReady(bool ready) = 0;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_RUNTIME_HTTP_SERVER_H_
