// Flags of the server roles, and how a server's life goes: start, one line when ready, wait for a
// signal, drain.
#ifndef KVIST_SERVICES_CLI_ROLE_FLAGS_H_
#define KVIST_SERVICES_CLI_ROLE_FLAGS_H_

#include <CLI/App.hpp>
#include <chrono>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "services/runtime/role_server.h"
#include "services/runtime/shutdown_signal.h"

namespace kvist::services {

struct RoleFlags {
  std::string grpc_address;
  std::string metrics_address;
  bool insecure = false;
  int drain_seconds = 10;
};
// Default addresses of a role.
struct RoleDefaults {
  const char* grpc;
  const char* metrics;
};
inline constexpr RoleDefaults kFrontendDefaults{"127.0.0.1:7070", "127.0.0.1:9100"};
inline constexpr RoleDefaults kCacheManagerDefaults{"127.0.0.1:7071", "127.0.0.1:9101"};
inline constexpr RoleDefaults kWorkerDefaults{"127.0.0.1:7072", "127.0.0.1:9102"};

// --grpc, --metrics, --insecure, --drain-seconds.
void AddRoleFlags(CLI::App* command, const RoleDefaults& defaults, RoleFlags* flags);
RoleServerOptions ServerOptions(const RoleFlags& flags);

// The line that scripts wait for: "kvist ready NAME=VALUE ...", the only one on stdout.
void PrintReady(const std::vector<std::pair<std::string, std::string>>& values);

// Runs `start`. SIGTERM or SIGINT meanwhile ends the process at once: there is nothing to drain,
// and loading a model takes long. Returns what `start` returns.
absl::Status StartUnlessSignalled(ShutdownSignal& signal,
                                  const std::function<absl::Status()>& start);

// Waits for SIGTERM or SIGINT, then calls `shutdown` with the drain time.
void ServeUntilSignal(ShutdownSignal& signal, const RoleFlags& flags,
                      const std::function<void(std::chrono::milliseconds)>& shutdown);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CLI_ROLE_FLAGS_H_
