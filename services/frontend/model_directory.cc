#include "services/frontend/model_directory.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "services/frontend/validate.h"
#include "services/runtime/role_server.h"
#include "services/runtime/status_map.h"

namespace kvist::services {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kLoadDeadline{500};
constexpr milliseconds kModelDeadline{10'000};  // a vocabulary has megabytes
constexpr milliseconds kFailedPause{2000};
// Past every lease and every use of a load; a peer may claim any number.
constexpr milliseconds kMaxAge = std::chrono::hours(1);

milliseconds AgeOf(int64_t claimed_ms) {
  return milliseconds(std::clamp<int64_t>(claimed_ms, 0, kMaxAge.count()));
}

template <typename Request, typename Response>
absl::StatusOr<Response> Ask(v1::Worker::StubInterface& stub,
                             grpc::Status (v1::Worker::StubInterface::*method)(grpc::ClientContext*,
                                                                               const Request&,
                                                                               Response*),
                             const Request& request, milliseconds deadline) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + deadline);
  Response response;
  const grpc::Status status = (stub.*method)(&context, request, &response);
  if (!status.ok()) return FromGrpc(status, context);
  return response;
}

}  // namespace

ModelDirectory::ModelDirectory(ModelDirectoryOptions options, ManagerClient* manager,
                               const Clock* clock)
    : options_(std::move(options)), manager_(manager), clock_(clock) {}

ModelDirectory::~ModelDirectory() { Stop(); }

void ModelDirectory::Start() {
  thread_ = std::thread([this] { Loop(); });
}

void ModelDirectory::Stop() {
  {
    MutexLock lock(mutex_);
    stop_ = true;
    wake_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

void ModelDirectory::Loop() {
  while (true) {
    PollManager();
    for (const std::string& address : options_.worker_addresses) PollFixed(address);
    AskWorkers();
    ForgetAndTell();
    MutexLock lock(mutex_);
    const auto next = std::chrono::steady_clock::now() +
                      (was_ready_ ? options_.poll_interval : options_.unready_poll_interval);
    while (!stop_ && wake_.WaitUntil(mutex_, next)) {
    }
    if (stop_) return;
  }
}

void ModelDirectory::PollManager() {
  if (!manager_->configured()) return;
  const MonotonicTime asked_at = clock_->Now();
  const auto listed = manager_->ListWorkers();
  MutexLock lock(mutex_);
  if (!listed.ok()) {
    // Nobody can say who is gone: the last known workers stay.
    for (auto& [id, entry] : workers_) entry.seen_at = clock_->Now();
    return;
  }
  for (const v1::WorkerInfo& info : listed->workers()) LearnLocked(info, asked_at);
}

void ModelDirectory::PollFixed(const std::string& address) {
  auto& stub = fixed_[address];
  if (stub == nullptr) stub = v1::Worker::NewStub(ConnectTo(address));
  const MonotonicTime asked_at = clock_->Now();
  const auto load =
      Ask(*stub, &v1::Worker::StubInterface::GetLoad, v1::GetLoadRequest(), kLoadDeadline);
  if (!load.ok()) return;
  v1::WorkerInfo info;
  info.set_worker_id(load->worker_id());
  info.set_incarnation(load->incarnation());
  info.set_address(address);
  info.set_connected(true);
  *info.mutable_load() = load->load();
  {
    MutexLock lock(mutex_);
    const auto known = workers_.find(info.worker_id());
    if (known != workers_.end() && known->second.worker.incarnation == info.incarnation()) {
      info.set_model_fingerprint(known->second.worker.fingerprint);
      LearnLocked(info, asked_at);
      return;
    }
  }
  // A new life may serve another model. Its vocabulary is fetched with the others', if it is new.
  v1::GetModelRequest request;
  {
    MutexLock lock(mutex_);
    if (!models_.empty()) request.set_known_fingerprint(models_.begin()->first);
  }
  const auto model = Ask(*stub, &v1::Worker::StubInterface::GetModel, request, kModelDeadline);
  if (!model.ok()) return;
  info.set_model_fingerprint(model->fingerprint());
  MutexLock lock(mutex_);
  LearnLocked(info, asked_at);
}

void ModelDirectory::Learn(const v1::WorkerInfo& info, MonotonicTime asked_at) {
  MutexLock lock(mutex_);
  LearnLocked(info, asked_at);
}

void ModelDirectory::LearnLocked(const v1::WorkerInfo& info, MonotonicTime asked_at) {
  // Who told us was asked at asked_at and answered later, so the worker was heard at this time or
  // after it. The time of the answer would make one that died meanwhile look alive.
  const auto heard_at = asked_at - AgeOf(info.lag_ms());
  // A worker that was started again has the address of the one that is no more, or its name, or
  // both. A dead one is not heard again, but it may be called connected for a while after its death
  // (nobody noticed yet), and its successor unconnected.
  const auto in_its_place = [&](const auto& other) {
    const KnownWorker& rival = other.second.worker;
    const bool same_life =
        other.first == info.worker_id() && rival.incarnation == info.incarnation();
    return !same_life && (other.first == info.worker_id() || rival.address == info.address());
  };
  for (const auto& other : workers_) {
    const KnownWorker& rival = other.second.worker;
    if (in_its_place(other) &&
        std::tie(rival.heard_at, rival.connected) > std::make_tuple(heard_at, info.connected())) {
      return;
    }
  }
  absl::erase_if(workers_, in_its_place);
  Entry& entry = workers_[info.worker_id()];
  KnownWorker& worker = entry.worker;
  entry.seen_at = asked_at;
  worker.id = info.worker_id();
  worker.incarnation = info.incarnation();
  worker.fingerprint = info.model_fingerprint();
  worker.load = info.load();
  worker.load_at = asked_at - AgeOf(info.load_age_ms());
  worker.suspect = info.suspect();
  worker.connected = info.connected();
  worker.heard_at = std::max(worker.heard_at, heard_at);
  if (worker.stub == nullptr || worker.address != info.address()) {
    worker.address = info.address();
    worker.stub = v1::Worker::NewStub(ConnectTo(worker.address));
  }
}

void ModelDirectory::AskWorkers() {
  std::vector<KnownWorker> silent;
  {
    MutexLock lock(mutex_);
    for (const auto& [id, entry] : workers_) {
      if (!entry.worker.limits.has_value()) silent.push_back(entry.worker);
    }
    absl::erase_if(unservable_, [this](const auto& life) ABSL_NO_THREAD_SAFETY_ANALYSIS {
      const auto known = workers_.find(life.first);
      return known == workers_.end() || known->second.worker.incarnation != life.second;
    });
  }
  absl::flat_hash_map<std::string, absl::StatusCode> unanswered;
  for (const KnownWorker& worker : silent) {
    if (unservable_.contains({worker.id, worker.incarnation})) continue;
    v1::GetModelRequest request;
    {
      MutexLock lock(mutex_);
      if (stop_) return;
      if (models_.contains(worker.fingerprint)) request.set_known_fingerprint(worker.fingerprint);
    }
    const auto answer = Ask(*worker.stub, &v1::Worker::StubInterface::GetModel, request,
                            request.known_fingerprint().empty() ? kModelDeadline : kLoadDeadline);
    if (!answer.ok()) {  // the next round tries again
      absl::StatusCode& told = unanswered[worker.id];
      const auto before = unanswered_.find(worker.id);
      told = answer.status().code();
      if (before == unanswered_.end() || before->second != told) {
        LogWarning("worker {} at {} does not tell its model: {}", worker.id, worker.address,
                   answer.status().ToString());
      }
      continue;
    }
    if (const absl::Status status = Take(worker, *answer); !status.ok()) {
      unservable_.insert({worker.id, worker.incarnation});
      LogWarning("worker {}: its model cannot be served: {}", worker.id,
                 std::string(status.message()));
    }
  }
  unanswered_ = std::move(unanswered);
}

absl::Status ModelDirectory::Take(const KnownWorker& worker, const v1::GetModelResponse& answer) {
  // Another life answered, at the address of this one: it is asked by its own name.
  if (answer.fingerprint() != worker.fingerprint || answer.incarnation() != worker.incarnation) {
    return absl::OkStatus();
  }
  std::shared_ptr<const ServedModel> model;
  {
    MutexLock lock(mutex_);
    if (const auto known = models_.find(worker.fingerprint); known != models_.end()) {
      model = known->second;
    }
  }
  if (model == nullptr) {
    KVIST_ASSIGN_OR_RETURN(model, ServedModel::Create(answer));
    LogInfo("model {} ({}) at worker {}", model->name(), model->fingerprint().substr(0, 12),
            worker.id);
  }
  KVIST_ASSIGN_OR_RETURN(ModelLimits limits, LimitsFromWire(answer, model->limits().vocab));
  MutexLock lock(mutex_);
  const auto served = models_.try_emplace(worker.fingerprint, std::move(model)).first;
  const auto entry = workers_.find(worker.id);
  if (entry != workers_.end() && entry->second.worker.incarnation == worker.incarnation) {
    entry->second.worker.limits = std::move(limits);
    JoinLimits(served->first, served->second);
  }
  return absl::OkStatus();
}

void ModelDirectory::ForgetAndTell() {
  bool ready = false;
  bool changed = false;
  {
    MutexLock lock(mutex_);
    const MonotonicTime oldest = clock_->Now() - options_.forget_after;
    absl::erase_if(workers_, [&](const auto& entry) { return entry.second.seen_at < oldest; });
    for (auto& [fingerprint, model] : models_) ready |= JoinLimits(fingerprint, model);
    changed = ready != was_ready_;
    was_ready_ = ready;
  }
  if (changed && options_.on_ready) options_.on_ready(ready);
}

bool ModelDirectory::JoinLimits(const std::string& fingerprint,
                                std::shared_ptr<const ServedModel>& model) const {
  std::optional<ModelLimits> all;
  for (const auto& [id, entry] : workers_) {
    const KnownWorker& worker = entry.worker;
    if (worker.fingerprint != fingerprint || !worker.limits.has_value()) continue;
    if (all.has_value()) {
      Widen(*worker.limits, *all);
    } else {
      all = worker.limits;
    }
  }
  if (!all.has_value()) return false;
  if (*all != model->limits()) model = model->WithLimits(*std::move(all));
  return true;
}

absl::StatusOr<std::shared_ptr<const ServedModel>> ModelDirectory::FindModel(
    const std::string& name) const {
  MutexLock lock(mutex_);
  std::vector<std::shared_ptr<const ServedModel>> served;
  for (const auto& [fingerprint, model] : models_) {
    bool has_worker = false;
    for (const auto& [id, entry] : workers_) has_worker |= entry.worker.fingerprint == fingerprint;
    if (!has_worker) continue;
    if (!name.empty() && (model->name() == name || fingerprint == name)) return model;
    served.push_back(model);
  }
  if (served.empty()) {
    return Unavailable(ErrorReason::kNoWorker, "no worker is ready; try again in a moment");
  }
  if (name.empty() && served.size() == 1) return served.front();
  const std::string names =
      absl::StrJoin(served, ", ", [](std::string* out, const auto& m) { out->append(m->name()); });
  if (name.empty()) return InvalidField("model", absl::StrCat("name one of these: ", names));
  return WithDetails(absl::NotFoundError(absl::StrCat("model: none is called \"", name,
                                                      "\"; these are served: ", names)),
                     {.field = "model"});
}

absl::Status ModelDirectory::CheckServed(const v1::CacheParams& cache) const {
  MutexLock lock(mutex_);
  absl::Status status;
  for (const auto& [fingerprint, model] : models_) {
    status = ValidateKvFormat(cache.kv_format(), model->limits());
    if (status.ok()) status = ValidateOffload(cache.offload(), model->limits());
    if (status.ok()) return status;
  }
  return status;
}

std::vector<KnownWorker> ModelDirectory::WorkersOf(const std::string& fingerprint) const {
  MutexLock lock(mutex_);
  std::vector<KnownWorker> workers;
  for (const auto& [id, entry] : workers_) {
    if (entry.worker.fingerprint == fingerprint) workers.push_back(entry.worker);
  }
  return workers;
}

std::vector<v1::Model> ModelDirectory::Models() const {
  MutexLock lock(mutex_);
  std::vector<v1::Model> described;
  for (const auto& [fingerprint, model] : models_) {
    v1::Model row = model->Describe();
    for (const auto& [id, entry] : workers_) {
      if (entry.worker.fingerprint != fingerprint || !entry.worker.limits.has_value()) continue;
      row.set_ready_workers(row.ready_workers() + 1);
    }
    if (row.ready_workers() > 0) described.push_back(std::move(row));
  }
  return described;
}

void ModelDirectory::MarkFailed(const std::string& worker_id, uint64_t incarnation) {
  MutexLock lock(mutex_);
  const auto entry = workers_.find(worker_id);
  if (entry == workers_.end() || entry->second.worker.incarnation != incarnation) return;
  entry->second.worker.failed_until = clock_->Now() + kFailedPause;
}

}  // namespace kvist::services
