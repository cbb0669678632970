// The worker's stream to the cache manager: events out, commands in, reconnecting for ever.
#ifndef KVIST_SERVICES_WORKER_MANAGER_LINK_H_
#define KVIST_SERVICES_WORKER_MANAGER_LINK_H_

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "cache_manager/stream/worker_side.h"
#include "cache_manager/worker_info.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "proto/kvist/v1/cache_manager.grpc.pb.h"
#include "services/runtime/stream_wire.h"
#include "worker/engine/engine.h"

namespace kvist::services {

// Two threads: one polls the state machine between steps and writes, one reads. All of the state
// machine runs on the engine's thread, so a slow manager costs the engine nothing but its bounded
// event log; while a step keeps the engine, the writing thread itself shows that the worker lives.
// Thread-safe.
class ManagerLink {
 public:
  struct Options {
    std::string manager_address;
    cache_manager::WorkerInfo info;
    WorkerDescription description;
    worker::Engine* engine = nullptr;  // outlives the link
    const Clock* clock = nullptr;      // likewise
    std::function<void(const SessionId&)>
        cancel_session;                      // ends the session's requests; must not block
    std::function<void(bool)> on_connected;  // the stream came up or went down
  };
  explicit ManagerLink(Options options);
  ~ManagerLink();  // ends the stream, joins the threads. REQUIRES: the engine still runs or has
                   // stopped

  // Something may have to be sent. Cheap; called on the engine's thread.
  void Wake();

 private:
  using Stream = grpc::ClientReaderWriter<v1::WorkerMessage, v1::ManagerMessage>;

  void Run();
  // One connection, from Hello to its end. True: the manager welcomed us.
  bool RunOnce();
  // What one look at the state machine gave.
  struct Polled {
    std::vector<cache_manager::WorkerMessage> messages;
    bool more = false;
    int64_t heartbeat_interval_ms = 0;
  };
  // Until the stream is at its end, or the link. False: neither, the engine is stopped.
  bool WriteUntilBroken(Stream& stream);
  // Asks the engine's thread to look at the state machine; WaitForPolled has the answer. False: the
  // engine is stopped.
  bool StartPoll() ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits at most kMaxEventDelay: nullopt if the engine is still in its step.
  std::optional<Polled> WaitForPolled(bool* broken) ABSL_LOCKS_EXCLUDED(mutex_);
  void ReadUntilBroken(Stream& stream, grpc::ClientContext& context);
  bool Handle(const v1::ManagerMessage& message);
  // Waits for a wake-up or until `time` has passed. False: stopped or broken.
  bool WaitForWork(std::chrono::milliseconds time, bool* broken) ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t NowMs() const;
  // Tells the log why the manager did not take the worker: the first time and whenever it changes.
  void TellRefusal(const grpc::Status& status);

  const Options options_;
  std::unique_ptr<v1::CacheManager::Stub> stub_;
  std::unique_ptr<cache_manager::WorkerSide> side_;  // the engine's thread's
  std::string told_refusal_;                         // the writing thread's; empty: none

  Mutex mutex_;
  CondVar changed_;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;  // the connection under way
  bool welcomed_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<Polled> polled_ ABSL_GUARDED_BY(mutex_);
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::thread thread_;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_WORKER_MANAGER_LINK_H_
