#include "services/worker/generate_stream.h"

#include <utility>

#include "common/base/status.h"
#include "services/runtime/status_map.h"
#include "services/worker/limits.h"
#include "services/worker/request_codec.h"

// Invariants: at most one write is under way, and whoever set writing_ starts it outside the lock;
// Finish is called once, by whoever set closed_; nothing is written after it. The relay holds the
// stream from Begin to OnDone.
namespace kvist::services {

std::shared_ptr<GenerateStream> GenerateStream::Create(Options options) {
  std::shared_ptr<GenerateStream> stream(new GenerateStream(std::move(options)));
  stream->self_ = stream;
  return stream;
}

void GenerateStream::Begin() {
  options_.relay->Add(shared_from_this());
  MutexLock lock(mutex_);
  begun_ = true;
  WakeLocked();
}

void GenerateStream::Refuse(const absl::Status& status) {
  {
    MutexLock lock(mutex_);
    closed_ = refused_ = true;
  }
  Finish(ToGrpc(status, options_.context));
}

void GenerateStream::CancelRequest() {
  {
    MutexLock lock(mutex_);
    if (refused_ || finished_.has_value()) return;
  }
  options_.cancel(this);
}

void GenerateStream::WakeLocked() {
  if (woken_ || writing_ || closed_ || !begun_) return;
  woken_ = true;
  options_.relay->Wake(shared_from_this());
}

void GenerateStream::OnTokens(std::span<const worker::TokenOutput> tokens) {
  MutexLock lock(mutex_);
  if (closed_ || overflowed_) return;
  if (tokens_.size() + tokens.size() > kMaxBufferedTokens) {
    overflowed_ = true;
    tokens_.clear();
    // A write is under way, that of the slow client: it is the relay's round that will see this.
    woken_ = true;
    options_.relay->Wake(shared_from_this());
    return;
  }
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  WakeLocked();
}

void GenerateStream::OnProgress(int64_t done_tokens, int64_t) {
  MutexLock lock(mutex_);
  prompt_done_ = done_tokens;
}

void GenerateStream::OnFinished(const worker::FinishInfo& info) {
  if (options_.on_finished) options_.on_finished(info);
  MutexLock lock(mutex_);
  finished_ = info;
  WakeLocked();
}

void GenerateStream::TakeTokens() {
  v1::TokenBatch* batch = response_.mutable_tokens();
  for (size_t n = 0; n < kMaxTokensPerMessage && !tokens_.empty(); ++n) {
    FillToken(tokens_.front(), batch->add_tokens());
    tokens_.pop_front();
  }
}

GenerateStream::Step GenerateStream::NextStep(MonotonicTime now) {
  woken_ = false;
  if (closed_ || !begun_) return Step::kNothing;
  if (overflowed_ && writing_) return Step::kCancelCall;
  if (writing_) return Step::kNothing;
  if (broken_ || overflowed_) {
    closed_ = true;
    return Step::kClose;
  }
  response_.Clear();
  response_.set_attempt(options_.attempt);
  Step step = Step::kWrite;
  if (!accepted_sent_) {
    accepted_sent_ = true;
    response_.mutable_accepted()->set_incarnation(options_.incarnation);
  } else if (!tokens_.empty()) {
    TakeTokens();
  } else if (finished_.has_value()) {
    FillFinished(*finished_, response_.mutable_finished());
    closed_ = true;
    step = Step::kWriteLast;
  } else if (now - last_write_ >= kProgressInterval) {
    response_.mutable_progress()->set_prompt_tokens_done(prompt_done_);
    response_.mutable_progress()->set_prompt_tokens(options_.prompt_tokens);
  } else {
    return Step::kNothing;
  }
  writing_ = true;
  last_write_ = now;
  return step;
}

void GenerateStream::Pump(MonotonicTime now) {
  Step step;
  grpc::Status status;
  {
    MutexLock lock(mutex_);
    step = NextStep(now);
    if (step == Step::kWriteLast) status = ToGrpc(finished_->status, options_.context);
  }
  switch (step) {
    case Step::kNothing:
      return;
    case Step::kWrite:
      return StartWrite(&response_);
    case Step::kWriteLast:
      return StartWriteAndFinish(&response_, grpc::WriteOptions(), status);
    case Step::kCancelCall:  // OnWriteDone(false) follows
      CancelRequest();
      return options_.context->TryCancel();
    case Step::kClose:
      CancelRequest();
      return Finish({grpc::StatusCode::CANCELLED, "the client is gone or too slow"});
  }
}

void GenerateStream::OnWriteDone(bool ok) {
  {
    MutexLock lock(mutex_);
    writing_ = false;
    if (!ok) broken_ = true;
    // Only a new round may write progress: its time is taken there.
    if (!broken_ && !overflowed_ && tokens_.empty() && !finished_.has_value()) return;
    WakeLocked();
  }
}

void GenerateStream::OnCancel() {
  CancelRequest();
  MutexLock lock(mutex_);
  broken_ = true;
  WakeLocked();
}

void GenerateStream::OnDone() {
  options_.relay->Remove(shared_from_this());
  self_.reset();
}

}  // namespace kvist::services
