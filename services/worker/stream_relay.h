// One thread that writes out what the engine produced, for all streams of the worker.
#ifndef KVIST_SERVICES_WORKER_STREAM_RELAY_H_
#define KVIST_SERVICES_WORKER_STREAM_RELAY_H_

#include <memory>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"

namespace kvist::services {

// Something that has output to start writing. Called on the relay's thread.
class RelayedStream {
 public:
  virtual ~RelayedStream() = default;
  // Starts writing what waits, if no write is under way. `now`: for progress after silence.
  virtual void Pump(MonotonicTime now) = 0;
};

// The engine's thread only queues: serialising and writing take about 10 us per message and stream,
// which no step should wait for. Thread-safe.
class StreamRelay {
 public:
  explicit StreamRelay(const Clock* clock);
  ~StreamRelay();  // joins the thread; streams are let go

  // From now on the stream is pumped when woken and every kProgressInterval.
  void Add(std::shared_ptr<RelayedStream> stream);
  void Remove(const std::shared_ptr<RelayedStream>& stream);
  // Pumps `stream` soon. The caller sees to it that a stream waits at most once.
  void Wake(std::shared_ptr<RelayedStream> stream);

 private:
  void Run();

  const Clock* const clock_;
  Mutex mutex_;
  CondVar changed_;
  absl::flat_hash_set<std::shared_ptr<RelayedStream>> live_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<RelayedStream>> woken_ ABSL_GUARDED_BY(mutex_);
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_WORKER_STREAM_RELAY_H_
