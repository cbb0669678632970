// Which workers there are and what they serve: polled from the cache manager and from fixed
// addresses, kept while both are silent, so that requests go on without a manager.
#ifndef KVIST_SERVICES_FRONTEND_MODEL_DIRECTORY_H_
#define KVIST_SERVICES_FRONTEND_MODEL_DIRECTORY_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "proto/kvist/v1/cache_manager.pb.h"
#include "proto/kvist/v1/worker.grpc.pb.h"
#include "services/frontend/manager_client.h"
#include "services/frontend/served_model.h"

namespace kvist::services {

// One worker, as last heard of.
struct KnownWorker {
  std::string id;
  uint64_t incarnation = 0;
  std::string address;
  std::string fingerprint;
  std::optional<ModelLimits> limits;  // what it serves; unset: it has not told yet
  v1::WorkerLoad load;
  MonotonicTime load_at;  // when the worker made that report
  bool suspect = false;
  bool connected = false;  // to the manager, or it answered us itself
  MonotonicTime heard_at;  // by whoever told us, at the earliest
  MonotonicTime
      failed_until;  // an attempt on it failed a moment ago: not chosen if there is another
  std::shared_ptr<v1::Worker::StubInterface> stub;
};

struct ModelDirectoryOptions {
  std::vector<std::string> worker_addresses;
  std::chrono::milliseconds poll_interval{500};
  // While no worker is there that can serve: a starting one is found soon.
  std::chrono::milliseconds unready_poll_interval{50};
  // A worker that no answer has named for so long is forgotten. Covers a manager's restart: workers
  // reconnect within 1 s.
  std::chrono::milliseconds forget_after{15'000};
  std::function<void(bool ready)>
      on_ready;  // called when there is a first worker, or none any more
};

// Thread-safe. Owns a polling thread between Start and Stop.
class ModelDirectory {
 public:
  // REQUIRES: manager and clock outlive it.
  ModelDirectory(ModelDirectoryOptions options, ManagerClient* manager, const Clock* clock);
  ~ModelDirectory();

  void Start();
  void Stop();  // idempotent

  // By name or fingerprint; empty: the only one. NOT_FOUND (field "model") listing the names;
  // INVALID_ARGUMENT if empty is ambiguous; UNAVAILABLE (kNoWorker) if no worker is there.
  absl::StatusOr<std::shared_ptr<const ServedModel>> FindModel(const std::string& name) const;
  // INVALID_ARGUMENT with the field named if there are models and none of them is served with this
  // KV format and this tier to offload to.
  absl::Status CheckServed(const v1::CacheParams& cache) const;
  // That serve the model, by id.
  std::vector<KnownWorker> WorkersOf(const std::string& fingerprint) const;
  std::vector<v1::Model> Models() const;
  // News by the way, from Locate, which was called at `asked_at`. Of two lives with one address or
  // one name (a worker was started again) only the one that was heard last is kept: it is the later
  // one, whatever else is said of the two.
  void Learn(const v1::WorkerInfo& info, MonotonicTime asked_at);
  // An attempt failed: other workers are preferred for a moment.
  void MarkFailed(const std::string& worker_id, uint64_t incarnation);

 private:
  struct Entry {
    KnownWorker worker;
    MonotonicTime seen_at;
  };
  void Loop();
  void PollManager();
  void PollFixed(const std::string& address);
  // Each worker once in its life: its model, if that is new, and what it serves.
  void AskWorkers();
  // INVALID_ARGUMENT if the model cannot be served.
  absl::Status Take(const KnownWorker& worker, const v1::GetModelResponse& answer);
  void ForgetAndTell();
  // Gives the model the limits of all its workers together. False: none of them has told its own,
  // and nothing happens.
  bool JoinLimits(const std::string& fingerprint, std::shared_ptr<const ServedModel>& model) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LearnLocked(const v1::WorkerInfo& info, MonotonicTime asked_at)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const ModelDirectoryOptions options_;
  ManagerClient* const manager_;
  const Clock* const clock_;
  // Stubs of fixed addresses; the polling thread's own.
  absl::flat_hash_map<std::string, std::shared_ptr<v1::Worker::StubInterface>> fixed_;

  // Lives of workers whose model this frontend cannot serve; the polling thread's own. Those of
  // workers that are gone are dropped, so there are at most as many as workers.
  absl::flat_hash_set<std::pair<std::string, uint64_t>> unservable_;

  // Workers whose GetModel failed in the last round, with what the log was told; the polling
  // thread's own.
  absl::flat_hash_map<std::string, absl::StatusCode> unanswered_;

  mutable Mutex mutex_;
  CondVar wake_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool was_ready_ ABSL_GUARDED_BY(mutex_) = false;
  absl::btree_map<std::string, Entry> workers_ ABSL_GUARDED_BY(mutex_);  // by id
  absl::btree_map<std::string, std::shared_ptr<const ServedModel>> models_
      ABSL_GUARDED_BY(mutex_);  // by fingerprint, with the limits of all its workers together; kept
                                // for good: few, and workers come back
  std::thread thread_;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_MODEL_DIRECTORY_H_
