#include "services/worker/stream_relay.h"

#include <utility>

#include "services/worker/limits.h"

namespace kvist::services {

StreamRelay::StreamRelay(const Clock* clock) : clock_(clock), thread_([this] { Run(); }) {}

StreamRelay::~StreamRelay() {
  {
    MutexLock lock(mutex_);
    stopped_ = true;
  }
  changed_.NotifyAll();
  thread_.join();
}

void StreamRelay::Add(std::shared_ptr<RelayedStream> stream) {
  MutexLock lock(mutex_);
  live_.insert(std::move(stream));
}

void StreamRelay::Remove(const std::shared_ptr<RelayedStream>& stream) {
  MutexLock lock(mutex_);
  live_.erase(stream);
}

void StreamRelay::Wake(std::shared_ptr<RelayedStream> stream) {
  {
    MutexLock lock(mutex_);
    woken_.push_back(std::move(stream));
  }
  changed_.NotifyOne();
}

void StreamRelay::Run() {
  auto next_round = std::chrono::steady_clock::now() + kProgressInterval;
  std::vector<std::shared_ptr<RelayedStream>> work;
  while (true) {
    {
      MutexLock lock(mutex_);
      while (woken_.empty() && !stopped_) {
        if (!changed_.WaitUntil(mutex_, next_round)) break;
      }
      if (stopped_) return;
      work.swap(woken_);
      if (std::chrono::steady_clock::now() >= next_round) {
        work.insert(work.end(), live_.begin(), live_.end());
        next_round = std::chrono::steady_clock::now() + kProgressInterval;
      }
    }
    const MonotonicTime now = clock_->Now();
    for (const auto& stream : work) stream->Pump(now);
    work.clear();
  }
}

}  // namespace kvist::services
