#include "services/cache_manager/worker_stream.h"

#include <utility>

#include "services/cache_manager/limits.h"
#include "services/runtime/status_map.h"

namespace kvist::services {

namespace {

// That wait behind a write: a peer that reads is rarely one behind.
constexpr size_t kMaxUnreadMessages = 8;

}  // namespace

WorkerStream* WorkerStream::Start(grpc::CallbackServerContext* context, Cluster* cluster) {
  std::shared_ptr<WorkerStream> stream(new WorkerStream(context, cluster));
  stream->self_ = stream;
  auto id = cluster->Open(stream);
  if (id.ok()) {
    stream->id_ = *id;
    stream->StartRead(&stream->incoming_);
  } else {
    stream->Close(id.status());
  }
  return stream.get();
}

void WorkerStream::Send(v1::ManagerMessage message) {
  bool full = false;
  {
    MutexLock lock(mutex_);
    if (end_.has_value()) return;
    full = queue_.size() >= kMaxQueuedManagerMessages;
    if (!full) queue_.push_back(std::move(message));
  }
  if (full) {
    return Close(absl::ResourceExhaustedError("the worker does not read what the manager sends"));
  }
  Advance();
}

void WorkerStream::Close(const absl::Status& status) {
  {
    MutexLock lock(mutex_);
    if (end_.has_value()) return;
    end_ = status;
    // A peer that does not read would hold the write, and with it the end, for ever. One that reads
    // gets the status.
    if (writing_ && queue_.size() >= kMaxUnreadMessages) context_->TryCancel();
    queue_.clear();  // nothing follows the end
  }
  Advance();
}

void WorkerStream::Advance() {
  bool write = false;
  absl::Status status;
  {
    MutexLock lock(mutex_);
    if (writing_ || finished_) return;
    if (end_.has_value()) {
      finished_ = true;
      status = *end_;
    } else if (!queue_.empty()) {
      outgoing_ = std::move(queue_.front());
      queue_.pop_front();
      writing_ = write = true;
    } else {
      return;
    }
  }
  if (write) {
    StartWrite(&outgoing_);
  } else {
    Finish(ToGrpc(status, context_));
  }
}

void WorkerStream::OnReadDone(bool ok) {
  if (!ok) {
    if (id_.has_value()) cluster_->Closed(*id_);
    return Close(absl::OkStatus());
  }
  const absl::Status status = cluster_->Receive(*id_, incoming_);
  if (!status.ok()) return Close(status);
  StartRead(&incoming_);
}

void WorkerStream::OnWriteDone(bool) {
  {
    MutexLock lock(mutex_);
    writing_ = false;
  }
  Advance();  // a failed write is followed by a failed read, which ends the stream
}

void WorkerStream::OnDone() {
  if (id_.has_value()) cluster_->Closed(*id_);
  self_.reset();
}

}  // namespace kvist::services
