#include "services/worker/worker_server.h"

#include <openssl/rand.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "cache_manager/event_log.h"
#include "common/base/check.h"
#include "common/base/mutex.h"
#include "common/base/status.h"
#include "services/runtime/cache_params.h"
#include "services/runtime/id_syntax.h"
#include "services/runtime/metrics.h"
#include "services/worker/engine_metrics.h"
#include "services/worker/manager_link.h"
#include "services/worker/model_answer.h"
#include "services/worker/stream_relay.h"
#include "services/worker/worker_service.h"
#include "worker/engine/offload.h"
#include "worker/kv/layout.h"

namespace kvist::services {
namespace {

namespace cm = ::kvist::cache_manager;

// After the drain, calls have only their last message to write.
constexpr std::chrono::milliseconds kLastWritesGrace{1'000};

uint64_t DrawIncarnation() {
  uint64_t value = 0;
  while (value == 0) {
    KVIST_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(&value), sizeof(value)) == 1,
                "the system has no randomness");
  }
  return value;
}

cm::WorkerInfo InfoOf(const worker::Backend& backend, const v1::GetModelResponse& model,
                      const std::string& address) {
  cm::WorkerInfo info{.id = WorkerId(model.worker_id()),
                      .incarnation = Incarnation(model.incarnation()),
                      .model_fingerprint = model.fingerprint(),
                      .numerics_id = model.numerics_id(),
                      .address = address,
                      .block_tokens = static_cast<uint32_t>(model.block_tokens())};
  for (const worker::PoolSpec& pool : backend.pools()) {
    const int64_t window = backend.model().groups[static_cast<size_t>(pool.group)].window;
    info.pools.push_back({.group = window == 0 ? "full" : absl::StrCat("window=", window),
                          .format = std::string(worker::KvFormatName(pool.format)),
                          .window_tokens = static_cast<uint32_t>(window),
                          .block_tokens = static_cast<uint32_t>(pool.block_tokens),
                          .bytes_per_block = static_cast<uint64_t>(pool.block_bytes),
                          .num_blocks = static_cast<uint32_t>(pool.num_blocks)});
  }
  return info;
}

// Members are destroyed in the reverse of the order in which data flows: link, server, service,
// engine, relay.
class Server final : public WorkerServer {
 public:
  Server(const WorkerServerOptions& options, std::unique_ptr<worker::Backend> backend,
         v1::GetModelResponse model)
      : options_(options),
        clock_(options.clock != nullptr ? options.clock : &system_clock_),
        worker_id_(model.worker_id()),
        registry_(options.server.registry),
        metrics_(*registry_, worker_id_),
        engine_metrics_(*backend, options.engine.disk.get(), &metrics_),
        relay_(clock_),
        engine_(MakeEngineOptions(), std::move(backend), clock_),
        service_({.engine = &engine_,
                  .relay = &relay_,
                  .clock = clock_,
                  .metrics = &metrics_,
                  .model = model,
                  .on_drain = [this] { TurnUnready(); }}),
        model_(std::move(model)) {
    model_.clear_vocabulary();
    engine_metrics_.SetMemory(engine_.memory());
  }

  ~Server() override { Shutdown(std::chrono::milliseconds(0)); }

  absl::Status Listen() {
    engine_.Start();
    KVIST_ASSIGN_OR_RETURN(server_, RoleServer::Start(options_.server, {&service_}));
    if (!options_.cache_manager_address.empty()) StartLink();
    MutexLock lock(ready_mutex_);
    listening_ = server_.get();
    listening_->SetReady(!draining_);
    return absl::OkStatus();
  }

  RoleServer& server() override { return *server_; }
  worker::Engine& engine() override { return engine_; }
  const std::string& worker_id() const override { return worker_id_; }

  void Shutdown(std::chrono::milliseconds grace) override {
    MutexLock one_at_a_time(shutdown_mutex_);
    if (server_ != nullptr) server_->SetReady(false);
    engine_.BeginDrain();
    service_.WaitUntilIdle(std::chrono::steady_clock::now() + grace, [] { return false; });
    {
      MutexLock lock(link_mutex_);
      running_link_ = nullptr;
    }
    link_.reset();
    engine_.Stop();
    if (server_ != nullptr) server_->Shutdown(kLastWritesGrace);
  }

 private:
  worker::EngineOptions MakeEngineOptions() {
    worker::EngineOptions engine = options_.engine;
    engine.on_step = [this, theirs = options_.engine.on_step] {
      OnStep();
      if (theirs) theirs();
    };
    return engine;
  }

  // A Drain may come as soon as the port is open.
  void TurnUnready() {
    MutexLock lock(ready_mutex_);
    draining_ = true;
    if (listening_ != nullptr) listening_->SetReady(false);
  }

  void StartLink() {
    const std::string& address =
        options_.advertise_address.empty() ? server_->grpc_address() : options_.advertise_address;
    link_ = std::make_unique<ManagerLink>(ManagerLink::Options{
        .manager_address = options_.cache_manager_address,
        .info = InfoOf(engine_.backend(), model_, address),
        .description = {.model_name = model_.name(), .context_tokens = model_.context_tokens()},
        .engine = &engine_,
        .clock = clock_,
        .cancel_session = [this](const SessionId& session) { service_.CancelSession(session); },
        .on_connected = [this](bool up) { metrics_.manager_connected.Set(up ? 1 : 0); }});
    MutexLock lock(link_mutex_);
    running_link_ = link_.get();
  }

  // On the engine's thread. The link polls by RunBetweenSteps, which ends here too: only events
  // wake it, or the two would wake each other for ever.
  void OnStep() {
    const worker::EngineStats stats = engine_.stats();
    uint64_t last_seq = 0;
    engine_.RunBetweenSteps([&](worker::EngineState& state) {
      engine_metrics_.Update(stats, state, clock_->Now());
      last_seq = state.events.last_seq();
    });
    if (last_seq == announced_seq_) return;
    announced_seq_ = last_seq;
    MutexLock lock(link_mutex_);
    if (running_link_ != nullptr) running_link_->Wake();
  }

  const WorkerServerOptions options_;
  const SystemClock system_clock_;
  const Clock* const clock_;
  const std::string worker_id_;
  const std::shared_ptr<prometheus::Registry> registry_;
  WorkerMetrics metrics_;
  EngineMetrics engine_metrics_;  // the engine's thread's
  uint64_t announced_seq_ = 0;    // likewise
  Mutex shutdown_mutex_;
  Mutex ready_mutex_;
  bool draining_ ABSL_GUARDED_BY(ready_mutex_) = false;
  RoleServer* listening_ ABSL_GUARDED_BY(ready_mutex_) = nullptr;
  Mutex link_mutex_;
  ManagerLink* running_link_ ABSL_GUARDED_BY(link_mutex_) = nullptr;
  StreamRelay relay_;
  worker::Engine engine_;
  WorkerService service_;
  v1::GetModelResponse model_;  // without the vocabulary
  std::unique_ptr<RoleServer> server_;
  std::unique_ptr<ManagerLink> link_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerServer>> WorkerServer::Start(
    const WorkerServerOptions& given, std::unique_ptr<worker::Backend> backend) {
  WorkerServerOptions options = given;
  KVIST_RETURN_IF_ERROR(CheckId("worker-id", options.worker_id, EmptyId::kAllowed));
  options.server.role = "worker";
  if (options.server.registry == nullptr) {
    options.server.registry = std::make_shared<prometheus::Registry>();
  }
  v1::GetModelResponse model = DescribeModel(*backend);
  model.set_worker_id(options.worker_id.empty() ? DrawId("w-") : options.worker_id);
  model.set_incarnation(DrawIncarnation());
  model.set_chat_format_override(options.chat_template);
  if (!options.vocabulary.has_value() && !options.model_path.empty()) {
    KVIST_ASSIGN_OR_RETURN(options.vocabulary, VocabularyOfFile(options.model_path));
  }
  if (options.vocabulary.has_value()) {
    // Frontends look up the piece of every id that comes.
    const int64_t pieces = static_cast<int64_t>(options.vocabulary->pieces.size());
    if (pieces != backend->model().vocab) {
      return InvalidField("vocabulary",
                          absl::StrCat(pieces, " tokens; the model has ", backend->model().vocab));
    }
    *model.mutable_vocabulary() = ToProto(*options.vocabulary);
    options.vocabulary.reset();
  }
  if (!options.offload_directory.empty()) {
    static const SystemClock clock;
    KVIST_ASSIGN_OR_RETURN(options.engine.disk,
                           worker::OpenDiskStore({.directory = options.offload_directory,
                                                  .bytes = options.offload_bytes,
                                                  .clock = &clock},
                                                 *backend));
  }
  if (options.engine.disk != nullptr) {
    model.add_offload_tiers(std::string(OffloadName(v1::CacheParams::DISK)));
  }
  auto server = std::make_unique<Server>(options, std::move(backend), std::move(model));
  KVIST_RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace kvist::services
