// kvist serve: all three roles in one process, over real gRPC on loopback.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "services/cache_manager/cache_manager_server.h"
#include "services/cli/commands.h"
#include "services/cli/model_flags.h"
#include "services/cli/role_flags.h"
#include "services/frontend/frontend_server.h"
#include "services/worker/worker_server.h"

namespace kvist::services {
namespace {

constexpr std::chrono::seconds kReadyTimeout{60};

struct ServeFlags {
  RoleFlags role;
  ModelFlags model;
  int workers = 1;
  std::string data_dir;
  std::string chat_template;
  std::string cluster_secret;
  bool trust_snapshots = false;
  int max_sequences = 64;
  int max_requests = 256;
};

// The three roles, started from the inside out and stopped from the outside in.
struct Roles {
  std::unique_ptr<CacheManagerServer> manager;
  std::vector<std::unique_ptr<WorkerServer>> workers;
  std::unique_ptr<FrontendServer> frontend;

  void Shutdown(std::chrono::milliseconds grace) {
    if (frontend != nullptr) frontend->Shutdown(grace);
    for (auto& worker : workers) worker->Shutdown(std::chrono::milliseconds(0));
    if (manager != nullptr) manager->Shutdown(std::chrono::milliseconds(0));
  }
};

RoleServerOptions Internal(const std::shared_ptr<prometheus::Registry>& registry) {
  RoleServerOptions options;
  options.grpc_address = "127.0.0.1:0";
  options.registry = registry;
  return options;
}

absl::Status StartWorkers(const ServeFlags& flags,
                          const std::shared_ptr<prometheus::Registry>& registry, Roles* roles) {
  KVIST_ASSIGN_OR_RETURN(worker::CpuBackendOptions backend_options, BackendOptions(flags.model));
  KVIST_ASSIGN_OR_RETURN(const std::string path, ResolveModel(flags.model.model));
  KVIST_ASSIGN_OR_RETURN(const auto file, OpenModel(path));
  if (backend_options.threads == 0 && flags.workers > 1) {
    // Several workers share the cores.
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    backend_options.threads = std::max(1, cores / flags.workers);
  }
  for (int i = 0; i < flags.workers; ++i) {
    KVIST_ASSIGN_OR_RETURN(auto backend, LoadBackend(*file, backend_options));
    WorkerServerOptions options;
    options.worker_id = absl::StrCat("worker-", i + 1);
    options.cache_manager_address = roles->manager->server().grpc_address();
    options.model_path = path;
    options.chat_template = flags.chat_template;
    options.engine = EngineOptionsOf(flags.model, flags.max_sequences);
    if (!flags.model.offload.directory.empty()) {
      options.offload_directory =
          absl::StrCat(flags.model.offload.directory, "/", options.worker_id);
      options.offload_bytes = static_cast<int64_t>(flags.model.offload.bytes);
    }
    options.server = Internal(registry);
    KVIST_ASSIGN_OR_RETURN(auto worker, WorkerServer::Start(options, std::move(backend)));
    roles->workers.push_back(std::move(worker));
  }
  return absl::OkStatus();
}

absl::Status StartRoles(const ServeFlags& flags, Roles* roles) {
  auto registry = std::make_shared<prometheus::Registry>();
  // The frontend's port is taken first: a port in use should be known before the model is loaded.
  CacheManagerServerOptions manager;
  manager.data_dir = flags.data_dir;
  manager.server = Internal(registry);
  KVIST_ASSIGN_OR_RETURN(roles->manager, CacheManagerServer::Start(manager));
  FrontendServerOptions frontend;
  frontend.cache_manager_address = roles->manager->server().grpc_address();
  frontend.cluster_secret = flags.cluster_secret;
  frontend.trust_snapshots = flags.trust_snapshots;
  frontend.max_running_requests = flags.max_requests;
  frontend.server = ServerOptions(flags.role);
  frontend.server.registry = registry;
  KVIST_ASSIGN_OR_RETURN(roles->frontend, FrontendServer::Start(frontend));
  KVIST_RETURN_IF_ERROR(StartWorkers(flags, registry, roles));
  if (!roles->frontend->WaitUntilReady(kReadyTimeout)) {
    return absl::UnavailableError("the worker did not become ready");
  }
  return absl::OkStatus();
}

int RunServe(const ServeFlags& flags) {
  ShutdownSignal signal;
  Roles roles;
  const absl::Status status =
      StartUnlessSignalled(signal, [&] { return StartRoles(flags, &roles); });
  if (!status.ok()) {
    roles.Shutdown(std::chrono::milliseconds(0));
    return ReportLocalError(status);
  }
  RoleServer& server = roles.frontend->server();
  PrintReady({{"grpc", server.grpc_address()},
              {"metrics", server.metrics_address()},
              {"cache-manager", roles.manager->server().grpc_address()},
              {"workers", absl::StrCat(roles.workers.size())}});
  ServeUntilSignal(signal, flags.role, [&](auto grace) { roles.Shutdown(grace); });
  return kExitOk;
}

}  // namespace

void AddServe(CLI::App& app, Run* run) {
  auto flags = std::make_shared<ServeFlags>();
  CLI::App* command =
      AddCommand(app, "serve", "Serve a model: frontend, cache manager and workers in one process.",
                 "  kvist serve --model smollm2\n"
                 "  kvist serve --model m.gguf --grpc 127.0.0.1:0 --workers 2 --data-dir "
                 "~/.local/state/kvist\n",
                 run, flags, &RunServe);
  AddRoleFlags(command, kFrontendDefaults, &flags->role);
  AddModelFlag(command, &flags->model.model);
  AddComputeFlags(command, &flags->model);
  AddCacheFlags(command, &flags->model);
  AddOffloadFlags(command, &flags->model.offload);
  AddEngineFlags(command, &flags->model);
  command->add_option("--workers", flags->workers, "each loads the model for itself")
      ->check(CLI::Range(1, 64))
      ->envname("KVIST_WORKER_COUNT")
      ->capture_default_str();
  command
      ->add_option("--data-dir", flags->data_dir,
                   "folder of the session store; none: sessions end with the process")
      ->envname("KVIST_DATA_DIR");
  command
      ->add_option("--chat-template", flags->chat_template,
                   "chatml, llama3 or gemma; none: recognise the file's")
      ->envname("KVIST_CHAT_TEMPLATE");
  command
      ->add_option("--cluster-secret", flags->cluster_secret,
                   "keeps tenants' prefix caches apart, seals session files")
      ->envname("KVIST_CLUSTER_SECRET");
  command->add_flag("--trust-snapshots", flags->trust_snapshots,
                    "take KV blocks from session files that other clusters sealed");
  command->add_option("--max-sequences", flags->max_sequences, "running at once on a worker")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--max-requests", flags->max_requests, "running at once; one more is refused")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
}

}  // namespace kvist::services
