#include "services/cli/role_flags.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <thread>

#include "common/base/logging.h"
#include "services/cli/interrupt.h"

namespace kvist::services {

void AddRoleFlags(CLI::App* command, const RoleDefaults& defaults, RoleFlags* flags) {
  flags->grpc_address = defaults.grpc;
  flags->metrics_address = defaults.metrics;
  command->add_option("--grpc", flags->grpc_address, "address to listen on; port 0: a free one")
      ->envname("KVIST_GRPC")
      ->capture_default_str();
  command
      ->add_option("--metrics", flags->metrics_address,
                   "address of /metrics, /healthz and /readyz; empty: none")
      ->envname("KVIST_METRICS")
      ->capture_default_str();
  command->add_flag("--insecure", flags->insecure,
                    "allow an address that others can reach, without TLS or credentials");
  command
      ->add_option("--drain-seconds", flags->drain_seconds,
                   "time for running requests to end on SIGTERM")
      ->check(CLI::Range(0, 3600))
      ->capture_default_str();
}

RoleServerOptions ServerOptions(const RoleFlags& flags) {
  RoleServerOptions options;
  options.grpc_address = flags.grpc_address;
  options.metrics_address = flags.metrics_address;
  options.insecure = flags.insecure;
  return options;
}

void PrintReady(const std::vector<std::pair<std::string, std::string>>& values) {
  std::printf("kvist ready");
  for (const auto& [name, value] : values) {
    if (!value.empty()) std::printf(" %s=%s", name.c_str(), value.c_str());
  }
  std::printf("\n");
  std::fflush(stdout);
}

absl::Status StartUnlessSignalled(ShutdownSignal& signal,
                                  const std::function<absl::Status()>& start) {
  std::thread watch([&signal] {
    if (const int number = signal.Wait(); number != 0) EndBySignal(number);
  });
  const absl::Status status = start();
  signal.Notify();
  watch.join();
  return status;
}

void ServeUntilSignal(ShutdownSignal& signal, const RoleFlags& flags,
                      const std::function<void(std::chrono::milliseconds)>& shutdown) {
  signal.Wait();
  LogInfo("shutting down; running requests have {} s", flags.drain_seconds);
  shutdown(std::chrono::seconds(flags.drain_seconds));
}

}  // namespace kvist::services
