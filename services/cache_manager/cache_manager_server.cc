#include "services/cache_manager/cache_manager_server.h"

#include <thread>
#include <utility>

#include "common/base/clock.h"
#include "common/base/logging.h"
#include "common/base/mutex.h"
#include "common/base/status.h"
#include "services/cache_manager/cache_manager_service.h"
#include "services/cache_manager/cluster.h"
#include "services/cache_manager/limits.h"
#include "services/cache_manager/turn_book.h"
#include "services/runtime/id_syntax.h"
#include "services/runtime/metrics.h"
#include "services/store/session_store.h"

namespace kvist::services {
namespace {

class Server final : public CacheManagerServer {
 public:
  Server(const CacheManagerServerOptions& options, std::unique_ptr<SessionStore> store)
      : clock_(options.clock != nullptr ? options.clock : &system_clock_),
        registry_(options.server.registry),
        metrics_(*registry_),
        store_(std::move(store)),
        book_(store_.get(), clock_, &metrics_),
        cluster_({.manager_id = DrawId("manager-"), .clock = clock_, .metrics = &metrics_}),
        service_(&cluster_, &book_, &metrics_),
        sessions_(&cluster_, &book_) {}

  ~Server() override { Shutdown(std::chrono::milliseconds(0)); }

  absl::Status Listen(const RoleServerOptions& options) {
    KVIST_ASSIGN_OR_RETURN(server_, RoleServer::Start(options, {&service_, &sessions_}));
    {
      MutexLock joining(join_mutex_);
      ticker_ = std::thread([this] { Tick(); });
    }
    server_->SetReady(true);
    return absl::OkStatus();
  }

  RoleServer& server() override { return *server_; }

  void Shutdown(std::chrono::milliseconds grace) override {
    if (server_ != nullptr) {
      server_->SetReady(false);
      // They would use up the grace; workers try again until a manager is back.
      cluster_.CloseAll(Unavailable(ErrorReason::kDraining, "the cache manager is stopping"));
      server_->Shutdown(grace);
    }
    {
      MutexLock lock(mutex_);
      stopped_ = true;
    }
    wake_.NotifyAll();
    MutexLock joining(join_mutex_);
    if (ticker_.joinable()) ticker_.join();
  }

 private:
  void Tick() {
    for (int tick = 0;; ++tick) {
      {
        MutexLock lock(mutex_);
        const auto next = std::chrono::steady_clock::now() + kTickInterval;
        while (!stopped_) {
          if (!wake_.WaitUntil(mutex_, next)) break;
        }
        if (stopped_) return;
      }
      cluster_.Tick(tick % kTicksPerRecount == 0 ? Cluster::Recount::kBlocks
                                                 : Cluster::Recount::kCheap);
      if (tick % kTicksPerExpiry == 0) {
        for (const SessionId& expired : book_.DeleteExpired()) {
          cluster_.ReleaseSession(expired, std::chrono::steady_clock::now());
        }
      }
      ReleaseLeftovers();
      const auto stored = book_.Count();
      if (stored.ok()) metrics_.sessions_stored.Set(static_cast<double>(*stored));
    }
  }

  // A worker that was away when a session was deleted does not know. A request that still runs
  // ends first: its frontend may know nothing of the deletion either.
  void ReleaseLeftovers() {
    const auto page = cluster_.NextUnchecked(kMaxSessionChecksPerTick);
    if (!page.has_value()) return;
    bool again = false;
    for (const Cluster::HeldSession& held : page->sessions) {
      const absl::StatusOr<bool> gone = book_.IsGone(held.id);
      if (!gone.ok()) return;  // the next tick asks again
      if (!*gone) continue;
      again |= held.active;
      if (!held.active && !cluster_.ReleaseSessionOn(page->worker, held.id).ok()) return;
    }
    cluster_.Checked(*page, again);
  }

  const SystemClock system_clock_;
  const Clock* const clock_;
  const std::shared_ptr<prometheus::Registry> registry_;
  ManagerMetrics metrics_;
  std::unique_ptr<SessionStore> store_;
  TurnBook book_;
  Cluster cluster_;
  CacheManagerService service_;
  SessionsService sessions_;
  std::unique_ptr<RoleServer> server_;
  Mutex mutex_;
  CondVar wake_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  Mutex join_mutex_;
  std::thread ticker_ ABSL_GUARDED_BY(join_mutex_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<CacheManagerServer>> CacheManagerServer::Start(
    const CacheManagerServerOptions& given) {
  CacheManagerServerOptions options = given;
  options.server.role = "cache-manager";
  if (options.server.registry == nullptr) {
    options.server.registry = std::make_shared<prometheus::Registry>();
  }
  KVIST_ASSIGN_OR_RETURN(auto store, OpenSqliteStore({.directory = options.data_dir}));
  auto server = std::make_unique<Server>(options, std::move(store));
  KVIST_RETURN_IF_ERROR(server->Listen(options.server));
  return server;
}

}  // namespace kvist::services
