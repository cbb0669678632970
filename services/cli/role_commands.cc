// kvist frontend, kvist cache-manager, kvist worker: one role per process.
#include <CLI/CLI.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "services/cache_manager/cache_manager_server.h"
#include "services/cli/commands.h"
#include "services/cli/model_flags.h"
#include "services/cli/role_flags.h"
#include "services/frontend/frontend_server.h"
#include "services/worker/worker_server.h"

namespace kvist::services {
namespace {

struct FrontendFlags {
  RoleFlags role;
  std::string cache_manager = kCacheManagerDefaults.grpc;
  std::vector<std::string> workers;
  std::string cluster_secret;
  bool trust_snapshots = false;
  int max_requests = 256;
};

int RunFrontend(const FrontendFlags& flags) {
  ShutdownSignal signal;
  FrontendServerOptions options;
  options.cache_manager_address = flags.cache_manager;
  options.worker_addresses = flags.workers;
  options.cluster_secret = flags.cluster_secret;
  options.trust_snapshots = flags.trust_snapshots;
  options.max_running_requests = flags.max_requests;
  options.server = ServerOptions(flags.role);
  auto server = FrontendServer::Start(options);
  if (!server.ok()) return ReportLocalError(server.status());
  // It listens and says so; whether it has workers is what /readyz and health tell.
  PrintReady({{"grpc", (*server)->server().grpc_address()},
              {"metrics", (*server)->server().metrics_address()}});
  ServeUntilSignal(signal, flags.role, [&](auto grace) { (*server)->Shutdown(grace); });
  return kExitOk;
}

struct CacheManagerFlags {
  RoleFlags role;
  std::string data_dir;
};

int RunCacheManager(const CacheManagerFlags& flags) {
  ShutdownSignal signal;
  CacheManagerServerOptions options;
  options.data_dir = flags.data_dir;
  options.server = ServerOptions(flags.role);
  auto server = CacheManagerServer::Start(options);
  if (!server.ok()) return ReportLocalError(server.status());
  PrintReady({{"grpc", (*server)->server().grpc_address()},
              {"metrics", (*server)->server().metrics_address()}});
  ServeUntilSignal(signal, flags.role, [&](auto grace) { (*server)->Shutdown(grace); });
  return kExitOk;
}

struct WorkerFlags {
  RoleFlags role;
  ModelFlags model;
  std::string cache_manager = kCacheManagerDefaults.grpc;
  std::string id;
  std::string advertise;
  std::string chat_template;
  int max_sequences = 64;
};

absl::Status StartWorker(const WorkerFlags& flags, std::unique_ptr<WorkerServer>* server) {
  KVIST_ASSIGN_OR_RETURN(worker::CpuBackendOptions backend_options, BackendOptions(flags.model));
  KVIST_ASSIGN_OR_RETURN(const std::string path, ResolveModel(flags.model.model));
  KVIST_ASSIGN_OR_RETURN(const auto file, OpenModel(path));
  KVIST_ASSIGN_OR_RETURN(auto backend, LoadBackend(*file, backend_options));
  WorkerServerOptions options;
  options.worker_id = flags.id;
  options.cache_manager_address = flags.cache_manager;
  options.advertise_address = flags.advertise;
  options.model_path = path;
  options.chat_template = flags.chat_template;
  options.engine = EngineOptionsOf(flags.model, flags.max_sequences);
  options.offload_directory = flags.model.offload.directory;
  options.offload_bytes = static_cast<int64_t>(flags.model.offload.bytes);
  options.server = ServerOptions(flags.role);
  KVIST_ASSIGN_OR_RETURN(*server, WorkerServer::Start(options, std::move(backend)));
  return absl::OkStatus();
}

int RunWorker(const WorkerFlags& flags) {
  ShutdownSignal signal;
  std::unique_ptr<WorkerServer> server;
  const absl::Status status =
      StartUnlessSignalled(signal, [&] { return StartWorker(flags, &server); });
  if (!status.ok()) return ReportLocalError(status);
  PrintReady({{"grpc", server->server().grpc_address()},
              {"metrics", server->server().metrics_address()},
              {"worker", server->worker_id()}});
  ServeUntilSignal(signal, flags.role, [&](auto grace) { server->Shutdown(grace); });
  return kExitOk;
}

}  // namespace

void AddFrontend(CLI::App& app, Run* run) {
  auto flags = std::make_shared<FrontendFlags>();
  CLI::App* command = AddCommand(app, "frontend", "Serve clients: text, sessions, routing.",
                                 "  kvist frontend --cache-manager 127.0.0.1:7071\n"
                                 "  kvist frontend --cache-manager \"\" --worker 127.0.0.1:7072\n",
                                 run, flags, &RunFrontend);
  AddRoleFlags(command, kFrontendDefaults, &flags->role);
  command
      ->add_option("--cache-manager", flags->cache_manager,
                   "its address; empty: none, so no sessions")
      ->envname("KVIST_CACHE_MANAGER")
      ->capture_default_str();
  command
      ->add_option("--worker", flags->workers,
                   "a worker beside those that the manager knows; may be repeated")
      ->envname("KVIST_WORKERS");
  command
      ->add_option("--cluster-secret", flags->cluster_secret,
                   "keeps tenants' prefix caches apart, seals session files")
      ->envname("KVIST_CLUSTER_SECRET");
  command->add_flag("--trust-snapshots", flags->trust_snapshots,
                    "take KV blocks from session files that other clusters sealed");
  command->add_option("--max-requests", flags->max_requests, "running at once; one more is refused")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
}

void AddCacheManager(CLI::App& app, Run* run) {
  auto flags = std::make_shared<CacheManagerFlags>();
  CLI::App* command = AddCommand(
      app, "cache-manager", "Keep sessions, and the mirror of every worker's KV blocks.",
      "  kvist cache-manager --data-dir ~/.local/state/kvist\n", run, flags, &RunCacheManager);
  AddRoleFlags(command, kCacheManagerDefaults, &flags->role);
  command
      ->add_option("--data-dir", flags->data_dir,
                   "folder of the session store; none: sessions end with the process")
      ->envname("KVIST_DATA_DIR");
}

void AddWorker(CLI::App& app, Run* run) {
  auto flags = std::make_shared<WorkerFlags>();
  CLI::App* command = AddCommand(
      app, "worker", "Run a model.",
      "  kvist worker --model smollm2 --cache-manager 127.0.0.1:7071\n"
      "  kvist worker --model m.gguf --kv-formats f16,q8 --kv-memory 512MB --threads 8\n",
      run, flags, &RunWorker);
  AddRoleFlags(command, kWorkerDefaults, &flags->role);
  AddModelFlag(command, &flags->model.model);
  AddComputeFlags(command, &flags->model);
  AddCacheFlags(command, &flags->model);
  AddOffloadFlags(command, &flags->model.offload);
  AddEngineFlags(command, &flags->model);
  command->add_option("--cache-manager", flags->cache_manager, "its address; empty: none")
      ->envname("KVIST_CACHE_MANAGER")
      ->capture_default_str();
  command->add_option("--id", flags->id, "the worker's name; none: drawn")
      ->envname("KVIST_WORKER_ID");
  command
      ->add_option("--advertise", flags->advertise,
                   "address told to others; none: the one it listens on")
      ->envname("KVIST_ADVERTISE");
  command
      ->add_option("--chat-template", flags->chat_template,
                   "chatml, llama3 or gemma; none: recognise the file's")
      ->envname("KVIST_CHAT_TEMPLATE");
  command->add_option("--max-sequences", flags->max_sequences, "running at once on a worker")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
}

}  // namespace kvist::services
