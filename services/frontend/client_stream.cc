#include "services/frontend/client_stream.h"

#include "common/base/logging.h"

namespace kvist::services {

using std::chrono::milliseconds;

SlowClientWatch::SlowClientWatch(milliseconds patience, const Clock* clock)
    : patience_(patience), clock_(clock), thread_([this] { Loop(); }) {}

SlowClientWatch::~SlowClientWatch() {
  {
    MutexLock lock(mutex_);
    stop_ = true;
    wake_.NotifyAll();
  }
  thread_.join();
}

void SlowClientWatch::Loop() {
  MutexLock lock(mutex_);
  while (!stop_) {
    const MonotonicTime now = clock_->Now();
    for (Stream* stream : streams_) {
      const MonotonicTime::rep since = stream->waiting_since_.load();
      if (since == 0 || stream->closed_) continue;
      if (now.time_since_epoch() - MonotonicTime::duration(since) < patience_) continue;
      stream->closed_ = true;
      stream->context_->TryCancel();
      LogWarning("a client did not read for {} ms: closed", patience_.count());
    }
    wake_.WaitUntil(mutex_, std::chrono::steady_clock::now() + patience_ / 8);
  }
}

SlowClientWatch::Stream::Stream(SlowClientWatch* watch, grpc::ServerContext* context,
                                grpc::ServerWriter<v1::GenerateResponse>* writer)
    : watch_(watch), context_(context), writer_(writer) {
  MutexLock lock(watch_->mutex_);
  watch_->streams_.insert(this);
}

SlowClientWatch::Stream::~Stream() {
  MutexLock lock(watch_->mutex_);
  watch_->streams_.erase(this);
}

bool SlowClientWatch::Stream::Write(const v1::GenerateResponse& response) {
  if (Gone()) return false;
  waiting_since_ = watch_->clock_->Now().time_since_epoch().count();
  const bool written = writer_->Write(response);
  waiting_since_ = 0;
  return written && !closed_;
}

bool SlowClientWatch::Stream::Gone() { return closed_ || context_->IsCancelled(); }

}  // namespace kvist::services
