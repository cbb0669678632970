#include "services/frontend/frontend_server.h"

#include <algorithm>
#include <utility>

#include "common/base/logging.h"
#include "common/base/mutex.h"
#include "common/base/status.h"
#include "services/frontend/frontend_state.h"
#include "services/frontend/inference_service.h"
#include "services/frontend/manager_services.h"
#include "services/frontend/session_turn.h"
#include "services/runtime/address.h"
#include "worker/kv/session_file.h"

namespace kvist::services {
namespace {

using std::chrono::milliseconds;

// Not a secret: prefix caches of tenants are then apart, but their names can be guessed.
constexpr char kDevelopmentSecret[] = "kvist development secret";
// Threads beside those of admitted requests: lists, sessions, health, refusals.
constexpr int kSpareThreads = 64;

class FrontendServerImpl final : public FrontendServer {
 public:
  FrontendServerImpl(const FrontendServerOptions& options,
                     std::shared_ptr<prometheus::Registry> registry)
      : registry_(std::move(registry)),
        state_(options.cache_manager_address.empty() ? nullptr
                                                     : ConnectTo(options.cache_manager_address),
               DirectoryOptions(options), options.max_running_requests, *registry_),
        inference_(&state_,
                   {.default_deadline = milliseconds(options.default_deadline_ms),
                    .slow_client_patience = milliseconds(options.slow_client_patience_ms)}),
        sessions_(&state_),
        memory_(&state_) {
    state_.cluster_secret =
        options.cluster_secret.empty() ? kDevelopmentSecret : options.cluster_secret;
    state_.relay.silence_limit = milliseconds(options.worker_silence_limit_ms);
    state_.relay.replay_wait = milliseconds(options.replay_wait_ms);
    state_.relay.max_buffered_bytes = options.max_buffered_bytes_per_client;
    state_.session_seal_key = worker::SessionSealKey(
        options.cluster_secret.empty() ? DrawSecret() : options.cluster_secret);
    state_.trust_snapshots = options.trust_snapshots;
    if (options.cluster_secret.empty()) {
      LogInfo(
          "no cluster secret is set: prefix caches are salted with a public one, and blocks of "
          "session files are believed only until this process ends");
    }
  }

  ~FrontendServerImpl() override { Shutdown(milliseconds(0)); }

  absl::Status Serve(const FrontendServerOptions& options) {
    RoleServerOptions server = options.server;
    server.role = "frontend";
    server.registry = registry_;
    server.max_threads = std::max(server.max_threads, options.max_running_requests + kSpareThreads);
    KVIST_ASSIGN_OR_RETURN(server_, RoleServer::Start(server, {&inference_, &sessions_, &memory_}));
    state_.directory.Start();
    state_.leases.Start(SessionTurn::kLease / 3);
    return absl::OkStatus();
  }

  RoleServer& server() override { return *server_; }

  bool WaitUntilReady(milliseconds timeout) override {
    const auto until = std::chrono::steady_clock::now() + timeout;
    MutexLock lock(mutex_);
    while (!ready_) {
      if (!changed_.WaitUntil(mutex_, until)) return ready_;
    }
    return true;
  }

  void Shutdown(milliseconds grace) override {
    state_.admission.Close();
    if (server_ != nullptr) server_->Shutdown(grace);
    state_.directory.Stop();
    state_.leases.Stop();
  }

 private:
  // 256 bits that nobody else has.
  std::string DrawSecret() {
    std::string secret;
    for (int i = 0; i < 4; ++i) secret += DrawName(state_.random, "");
    return secret;
  }

  ModelDirectoryOptions DirectoryOptions(const FrontendServerOptions& options) {
    return {.worker_addresses = options.worker_addresses,
            .on_ready = [this](bool ready) { OnReady(ready); }};
  }

  void OnReady(bool ready) {
    server_->SetReady(ready);
    MutexLock lock(mutex_);
    ready_ = ready;
    changed_.NotifyAll();
  }

  const std::shared_ptr<prometheus::Registry> registry_;
  Mutex mutex_;
  CondVar changed_;
  bool ready_ ABSL_GUARDED_BY(mutex_) = false;
  FrontendState state_;
  InferenceService inference_;
  SessionsProxy sessions_;
  MemoryProxy memory_;
  std::unique_ptr<RoleServer> server_;
};

absl::Status CheckOptions(const FrontendServerOptions& options) {
  if (options.max_running_requests < 1) {
    return InvalidField("max-running-requests", "must be at least 1");
  }
  if (options.default_deadline_ms < 1) return InvalidField("deadline-ms", "must be at least 1");
  if (options.slow_client_patience_ms < 1 || options.worker_silence_limit_ms < 1) {
    return InvalidField("patience", "must be at least 1 ms");
  }
  if (options.replay_wait_ms < 0) return InvalidField("replay-wait", "must not be negative");
  if (!options.cache_manager_address.empty()) {
    KVIST_RETURN_IF_ERROR(ParseHostPort(options.cache_manager_address, "--cache-manager").status());
  }
  for (const std::string& address : options.worker_addresses) {
    KVIST_RETURN_IF_ERROR(ParseHostPort(address, "--worker").status());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<FrontendServer>> FrontendServer::Start(
    const FrontendServerOptions& options) {
  KVIST_RETURN_IF_ERROR(CheckOptions(options));
  auto registry = options.server.registry != nullptr ? options.server.registry
                                                     : std::make_shared<prometheus::Registry>();
  auto server = std::make_unique<FrontendServerImpl>(options, std::move(registry));
  KVIST_RETURN_IF_ERROR(server->Serve(options));
  return server;
}

}  // namespace kvist::services
