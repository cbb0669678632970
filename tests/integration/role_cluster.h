// All three roles in this process, over real gRPC, with a model that is a hash of the tokens
// before.
#ifndef KVIST_TESTS_INTEGRATION_ROLE_CLUSTER_H_
#define KVIST_TESTS_INTEGRATION_ROLE_CLUSTER_H_

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/cache_manager/cache_manager_server.h"
#include "services/client/client.h"
#include "services/frontend/frontend_server.h"
#include "services/worker/worker_server.h"
#include "tests/integration/background.h"
#include "tests/services/frontend/letter_vocabulary.h"
#include "tests/support/hash_backend.h"

namespace kvist::services {

struct RoleClusterOptions {
  int workers = 1;
  int32_t max_running_requests = 64;
  int32_t num_blocks = 512;  // of each worker
  worker::SamplingDefaults sampling_defaults;
  int64_t replay_wait_ms = 15'000;
  // Of all workers; vocabulary, context and pace are the cluster's.
  worker::HashBackendOptions backend;
  // Makes the workers unlike; `index` from 0.
  std::function<void(size_t index, worker::HashBackendOptions*, WorkerServerOptions*)> unlike;
  std::string cluster_secret = "the tests'";
  bool trust_snapshots = false;
  // On a worker's thread, before each batch; may wait.
  std::function<void(const worker::Batch&)> on_run;
};

// How fast a worker runs. Thread-safe.
class Pace {
 public:
  // Each step takes this long; 0: as fast as it can.
  void SetStepMs(int step_ms) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    step_ms_ = step_ms;
    changed_.NotifyAll();
  }
  void Step() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    const auto start = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() < start + std::chrono::milliseconds(step_ms_)) {
      changed_.WaitUntil(mutex_, start + std::chrono::milliseconds(step_ms_));
    }
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  int step_ms_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Started in the constructor; any failure ends the test's process. Single-threaded but for its
// clients.
class RoleCluster {
 public:
  explicit RoleCluster(const RoleClusterOptions& options = {})
      : sampling_defaults_(options.sampling_defaults),
        backend_(options.backend),
        unlike_(options.unlike),
        on_run_(options.on_run) {
    CacheManagerServerOptions manager_options;
    manager_options.server.role = "cache-manager";
    manager = CacheManagerServer::Start(manager_options).value();
    for (int i = 0; i < options.workers; ++i) StartWorker(options.num_blocks);
    FrontendServerOptions frontend_options;
    frontend_options.cache_manager_address = manager->server().grpc_address();
    frontend_options.max_running_requests = options.max_running_requests;
    frontend_options.replay_wait_ms = options.replay_wait_ms;
    frontend_options.cluster_secret = options.cluster_secret;
    frontend_options.trust_snapshots = options.trust_snapshots;
    frontend = FrontendServer::Start(frontend_options).value();
    // Every worker, not only the first.
    if (options.workers == 0) return;
    Until([&] {
      return frontend->WaitUntilReady(std::chrono::seconds(30)) &&
             ReadyWorkers() == options.workers;
    });
  }
  ~RoleCluster() {
    const std::chrono::milliseconds now{0};
    frontend->Shutdown(now);
    for (auto& worker : workers) worker->Shutdown(now);
    manager->Shutdown(now);
  }

  std::unique_ptr<Client> Connect() const {
    return Client::Connect(frontend->server().grpc_address(), std::chrono::seconds(10)).value();
  }

  int ReadyWorkers() const {
    const auto models = Connect()->ListModels();
    return models.ok() && models->models_size() == 1
               ? static_cast<int>(models->models(0).ready_workers())
               : 0;
  }

  static bool Until(const std::function<bool()>& condition) { return services::Until(condition); }

  // No request runs or waits on any worker.
  bool Idle() const {
    for (const auto& worker : workers) {
      const auto load = worker->engine().load();
      if (load.running_sequences != 0 || load.waiting_sequences != 0) return false;
    }
    return true;
  }

  void StartWorker(int32_t num_blocks = 512) {
    worker::HashBackendOptions backend = backend_;
    backend.num_blocks = num_blocks;
    backend.vocab = kLetterVocabularySize;
    backend.context_tokens = 1024;
    backend.sampling_defaults = sampling_defaults_;
    WorkerServerOptions options;
    if (unlike_) unlike_(workers.size(), &backend, &options);
    auto control = std::make_shared<worker::HashBackendControl>();
    control->on_run = [this](const worker::Batch& batch) {
      if (on_run_) on_run_(batch);
      pace.Step();
    };
    options.worker_id = absl::StrCat("worker-", workers.size() + 1);
    options.cache_manager_address = manager->server().grpc_address();
    options.vocabulary = LetterVocabulary();
    options.server.role = "worker";
    workers.push_back(WorkerServer::Start(options, std::make_unique<worker::HashBackend>(
                                                       backend, std::move(control)))
                          .value());
  }

  Pace pace;  // of all workers
  std::unique_ptr<CacheManagerServer> manager;
  std::vector<std::unique_ptr<WorkerServer>> workers;
  std::unique_ptr<FrontendServer> frontend;

 private:
  const worker::SamplingDefaults sampling_defaults_;
  const worker::HashBackendOptions backend_;
  const decltype(RoleClusterOptions::unlike) unlike_;
  const std::function<void(const worker::Batch&)> on_run_;
};

}  // namespace kvist::services

#endif  // KVIST_TESTS_INTEGRATION_ROLE_CLUSTER_H_
