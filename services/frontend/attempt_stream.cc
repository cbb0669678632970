// Invariant: while held_, at most one read is on its way (reading_), and only its completion or
// Next starts another.
#include "services/frontend/attempt_stream.h"

#include <utility>

#include "services/runtime/status_map.h"

namespace kvist::services {

AttemptStream::AttemptStream(v1::Worker::StubInterface* stub,
                             const v1::WorkerGenerateRequest& request, const Options& options)
    : max_buffered_bytes_(options.max_buffered_bytes), request_(request) {
  context_.set_deadline(options.deadline);
  stub->async()->Generate(&context_, &request_, this);
  AddHold();
  StartRead(&incoming_);
  StartCall();
}

AttemptStream::~AttemptStream() {
  context_.TryCancel();
  bool release = false;
  {
    MutexLock lock(mutex_);
    closing_ = true;
    release = held_ && !reading_;
    if (release) held_ = false;
  }
  if (release) RemoveHold();
  MutexLock lock(mutex_);
  while (!done_) changed_.Wait(mutex_);
}

AttemptStream::Event AttemptStream::Next(MonotonicTime until, v1::WorkerGenerateResponse* message,
                                         absl::Status* status) {
  bool read = false;
  {
    MutexLock lock(mutex_);
    while (messages_.empty() && !done_) {
      if (!changed_.WaitUntil(mutex_, until) && messages_.empty() && !done_) {
        return Event::kTimeout;
      }
    }
    if (messages_.empty()) {
      *status = status_;
      return Event::kEnd;
    }
    *message = std::move(messages_.front());
    messages_.pop_front();
    buffered_bytes_ -= message->ByteSizeLong();
    read = held_ && !reading_ && buffered_bytes_ <= max_buffered_bytes_ / 2;
    if (read) reading_ = true;
  }
  if (read) StartRead(&incoming_);
  return Event::kMessage;
}

void AttemptStream::OnReadDone(bool ok) {
  bool read = false;
  bool release = false;
  {
    MutexLock lock(mutex_);
    if (ok) {
      buffered_bytes_ += incoming_.ByteSizeLong();
      messages_.push_back(std::move(incoming_));
      changed_.NotifyAll();
    }
    read = ok && buffered_bytes_ < max_buffered_bytes_;
    reading_ = read;
    // Without a read on its way, only Next could start one; and when nobody calls that any more,
    // only we can let go.
    release = held_ && (!ok || (closing_ && !read));
    if (release) held_ = false;
  }
  if (read) StartRead(&incoming_);
  if (release) RemoveHold();
}

void AttemptStream::OnDone(const grpc::Status& status) {
  absl::Status ended = FromGrpc(status, context_);
  MutexLock lock(mutex_);
  status_ = std::move(ended);
  done_ = true;
  changed_.NotifyAll();
}

}  // namespace kvist::services
