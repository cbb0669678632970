// Invariant: result_.generated.size() is the index of the next token wanted. A message counts only
// if it carries the number of the attempt that is running; a token only if its index is that one.
#include "services/frontend/relay.h"

#include <algorithm>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "common/base/status.h"

namespace kvist::services {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kLookUp{50};           // how often Gone is asked
constexpr milliseconds kMaxRetryPause{1000};  // before failed workers are tried again
constexpr milliseconds kDeadlineSlack{500};   // the worker's own end at the deadline comes first
// Workers that may find the request broken: the first may have failed for its own reason (a step of
// other requests too); a second says that it is the request.
constexpr int kMaxBrokenAttempts = 2;

// How an attempt ended.
enum class End {
  kOver,       // the request is over; the result says how
  kLost,       // the worker is lost: replay
  kElsewhere,  // the worker refuses for now: another may take it
};

class Relay {
 public:
  Relay(const RelayRequest& request, const RelayOptions& options, WorkerChooser& chooser,
        RelaySink& sink, const Clock& clock)
      : request_(request), options_(options), chooser_(chooser), sink_(sink), clock_(clock) {}

  RelayResult Run() {
    const int64_t most = request_.base.stop().max_new_tokens();
    last_news_ = clock_.Now();
    while (true) {
      if (FinishedAlready(most) || StopsNow()) return std::move(result_);
      auto worker = chooser_.Choose(failed_);
      if (!worker.ok()) {
        if (!WaitForWorkers(worker.status())) return std::move(result_);
        continue;
      }
      const size_t before = result_.generated.size();
      taken_ = false;
      const End end = RunAttempt(*worker);
      tried_.insert({worker->id, worker->incarnation});
      if (end == End::kOver) return std::move(result_);
      failed_.insert({worker->id, worker->incarnation});
      if (end == End::kLost) {
        chooser_.MarkFailed(*worker);
        // Once for each worker: it may be tried many times before it is back.
        const bool first = told_.insert({worker->id, worker->incarnation}).second;
        if (first) {
          LogWarning("request {}: worker {} lost at token {}: {}", request_.base.request_id(),
                     worker->id, result_.generated.size(), std::string(last_error_.message()));
        }
      }
      fruitless_ = before == result_.generated.size() ? fruitless_ + (taken_ ? 1 : 0) : 0;
      if (fruitless_ >= options_.max_fruitless_attempts) {
        FailAsLost();
        return std::move(result_);
      }
    }
  }

 private:
  // The last token was delivered and only the worker's own end was lost.
  bool FinishedAlready(int64_t most) {
    const auto count = static_cast<int64_t>(result_.generated.size());
    if (count == 0) return false;
    const bool stop =
        count > request_.base.stop().min_new_tokens() && request_.is_stop(result_.generated.back());
    if (!stop && count < most) return false;
    result_.reason = stop ? v1::STOP : v1::LENGTH;
    result_.usage.set_prompt_tokens(request_.base.prompt_ids_size());
    return true;
  }

  // The client's will or the clock's.
  bool StopsNow() {
    if (sink_.Gone()) {
      EndWith(v1::CANCELLED, absl::CancelledError("cancelled"));
      return true;
    }
    if (clock_.Now() < request_.deadline) return false;
    EndWith(v1::DEADLINE, absl::DeadlineExceededError("the deadline passed"));
    return true;
  }

  void EndWith(v1::FinishReason reason, absl::Status status) {
    result_.reason = reason;
    result_.status = std::move(status);
  }
  void Fail(absl::Status status) { EndWith(v1::ERROR, std::move(status)); }

  // The status tells where to resume. What happened behind (addresses, other processes) is for the
  // log.
  void FailAsLost() {
    result_.lost = true;
    Fail(WithDetails(absl::AbortedError("the worker was lost and no other could go on"),
                     {.resume_index = static_cast<int64_t>(result_.generated.size())}));
  }

  // No worker beside those that failed: they may come back, or others come. false: no longer; the
  // result is filled.
  bool WaitForWorkers(const absl::Status& none) {
    if (broken_ > 0) {  // those that are left would find the same
      Fail(broken_status_);
      return false;
    }
    const bool begun = result_.attempts > 0;
    const bool refused = !last_error_.ok() && absl::IsResourceExhausted(last_error_);
    const milliseconds patience = begun ? options_.replay_wait : options_.first_wait;
    const bool tried = !failed_.empty();
    if (!begun && (refused || !tried)) {
      Fail(refused ? last_error_ : none);
      return false;
    }
    if (clock_.Now() - last_news_ > patience) {
      if (begun) {
        FailAsLost();
      } else {
        Fail(none);
      }
      return false;
    }
    if (clock_.Now() >= retry_at_) {
      failed_.clear();
      retry_at_ = clock_.Now() + retry_pause_;
      retry_pause_ = std::min(2 * retry_pause_, kMaxRetryPause);
    }
    std::this_thread::sleep_for(kLookUp);
    return true;
  }

  End RunAttempt(ChosenWorker& worker) {
    v1::WorkerGenerateRequest request = request_.base;
    request.set_attempt(++attempt_);
    request.set_expected_incarnation(worker.incarnation);
    request.mutable_generated_ids()->Add(result_.generated.begin(), result_.generated.end());
    const auto left = request_.deadline - clock_.Now() + kDeadlineSlack;
    AttemptStream stream(worker.stub.get(), request,
                         {.deadline = std::chrono::system_clock::now() +
                                      std::chrono::duration_cast<std::chrono::microseconds>(left),
                          .max_buffered_bytes = options_.max_buffered_bytes});
    finished_.reset();
    MonotonicTime heard = clock_.Now();
    v1::WorkerGenerateResponse message;
    while (true) {
      absl::Status status;
      switch (stream.Next(clock_.Now() + kLookUp, &message, &status)) {
        case AttemptStream::Event::kTimeout:
          if (StopsNow()) return End::kOver;
          if (clock_.Now() - heard <= options_.silence_limit) break;
          last_error_ = absl::UnavailableError("silent for too long");
          return End::kLost;
        case AttemptStream::Event::kEnd:
          return EndOfStream(status, worker);
        case AttemptStream::Event::kMessage:
          if (StopsNow()) return End::kOver;
          if (message.attempt() == attempt_) {
            if (const auto end = OnMessage(message, worker); end.has_value()) return *end;
          }
          // Time spent on writing to a slow client is not the worker's silence.
          heard = clock_.Now();
      }
    }
  }

  std::optional<End> OnMessage(const v1::WorkerGenerateResponse& message, ChosenWorker& worker) {
    if (!taken_) {
      taken_ = true;
      ++result_.attempts;
      result_.worker_id = worker.id;
      result_.worker_incarnation = worker.incarnation;
      if (result_.attempts == 1) result_.located_tokens = worker.located_tokens;
      if (result_.attempts == 1 && !sink_.OnStarted(worker.id)) return ClientGone();
    }
    switch (message.event_case()) {
      case v1::WorkerGenerateResponse::kTokens:
        worker.place.PrefillDone();
        return OnTokens(message.tokens());
      case v1::WorkerGenerateResponse::kProgress:
        // Of a replay, the client has seen the prompt done already.
        if (result_.generated.empty() && !sink_.OnProgress(message.progress().prompt_tokens_done(),
                                                           message.progress().prompt_tokens())) {
          return ClientGone();
        }
        return std::nullopt;
      case v1::WorkerGenerateResponse::kFinished:
        finished_ = message.finished();
        return std::nullopt;
      default:
        return std::nullopt;
    }
  }

  End ClientGone() {
    EndWith(v1::CANCELLED, absl::CancelledError("cancelled"));
    return End::kOver;
  }

  std::optional<End> OnTokens(const v1::TokenBatch& batch) {
    std::vector<v1::Token> fresh;
    auto next = static_cast<int64_t>(result_.generated.size());
    for (const v1::Token& token : batch.tokens()) {
      if (token.index() < next) continue;  // a repeat
      if (token.index() > next) {
        last_error_ = absl::InternalError(
            absl::StrCat("token ", token.index(), " came where ", next, " was due"));
        return End::kLost;
      }
      if (token.id() < 0 || token.id() >= request_.vocabulary) {
        last_error_ = absl::InternalError(absl::StrCat("token id ", token.id(), " is no id"));
        return End::kLost;
      }
      fresh.push_back(token);
      ++next;
    }
    if (fresh.empty()) return std::nullopt;
    last_news_ = clock_.Now();
    retry_pause_ = kLookUp;
    if (result_.generated.empty()) result_.first_token_at = last_news_;
    result_.last_token_at = last_news_;
    for (const v1::Token& token : fresh) result_.generated.push_back(token.id());
    switch (sink_.OnTokens(fresh)) {
      case RelaySink::Verdict::kGoOn:
        return std::nullopt;
      case RelaySink::Verdict::kStop:
        EndWith(v1::STOP, absl::OkStatus());
        result_.usage.set_prompt_tokens(request_.base.prompt_ids_size());
        return End::kOver;
      case RelaySink::Verdict::kGone:
        break;
    }
    return ClientGone();
  }

  // The worker runs another request of that name: the client's mistake, unless it is an earlier
  // attempt of this one.
  End NameTaken(const absl::Status& status, const ChosenWorker& worker) {
    if (result_.attempts > 0 || tried_.contains({worker.id, worker.incarnation})) {
      return End::kElsewhere;
    }
    Fail(status);
    return End::kOver;
  }

  // The worker lives and says that an invariant of this request broke there (its logits are not
  // numbers, its step failed). The status names the worker's own line in its log.
  End Broken(const absl::Status& status, const ChosenWorker& worker) {
    LogWarning("request {}: broken at worker {}, token {}: {}", request_.base.request_id(),
               worker.id, result_.generated.size(), std::string(status.message()));
    last_error_ = broken_status_ = status;
    if (++broken_ < kMaxBrokenAttempts) return End::kElsewhere;
    Fail(status);
    return End::kOver;
  }

  End EndOfStream(const absl::Status& status, const ChosenWorker& worker) {
    if (finished_.has_value()) {
      result_.has_usage = true;
      result_.usage = finished_->usage();
      result_.timings = finished_->timings();
      const v1::FinishReason reason = finished_->reason();
      if (reason == v1::STOP || reason == v1::LENGTH) {
        EndWith(reason, absl::OkStatus());
        return End::kOver;
      }
      // Nobody here cancelled: the session was deleted, by way of another frontend.
      if (reason == v1::CANCELLED) return ClientGone();
      if (reason == v1::DEADLINE) {
        EndWith(v1::DEADLINE, absl::DeadlineExceededError("the deadline passed"));
        return End::kOver;
      }
      if (reason == v1::ERROR && absl::IsInternal(status)) return Broken(status, worker);
    }
    last_error_ = status.ok() ? absl::UnavailableError("the stream ended early") : status;
    switch (status.code()) {
      case absl::StatusCode::kResourceExhausted:
        return End::kElsewhere;
      case absl::StatusCode::kDeadlineExceeded:
        EndWith(v1::DEADLINE, absl::DeadlineExceededError("the deadline passed"));
        return End::kOver;
      case absl::StatusCode::kInvalidArgument:
      case absl::StatusCode::kOutOfRange:
        // Another worker took it: this one serves less.
        if (result_.attempts > 0) return End::kElsewhere;
        Fail(status);
        return End::kOver;
      case absl::StatusCode::kFailedPrecondition:
      case absl::StatusCode::kNotFound:
      case absl::StatusCode::kPermissionDenied:
      case absl::StatusCode::kUnauthenticated:
      case absl::StatusCode::kUnimplemented:
        Fail(status);
        return End::kOver;
      case absl::StatusCode::kAborted:
        if (DetailsOf(status).field == "request_id") return NameTaken(status, worker);
        return End::kLost;  // restarted
      default:              // gone, going, restarted, or broken
        return DetailsOf(status).reason == ErrorReason::kDraining ? End::kElsewhere : End::kLost;
    }
  }

  const RelayRequest& request_;
  const RelayOptions& options_;
  WorkerChooser& chooser_;
  RelaySink& sink_;
  const Clock& clock_;
  RelayResult result_;
  WorkerLives failed_;  // left out of the choice
  WorkerLives tried_;   // by this request
  WorkerLives told_;    // of their loss, to the log
  MonotonicTime retry_at_;
  milliseconds retry_pause_ = kLookUp;
  uint32_t attempt_ = 0;
  int32_t fruitless_ = 0;
  int broken_ = 0;  // attempts that ended with a broken invariant
  absl::Status broken_status_;
  bool taken_ = false;  // this attempt was answered
  std::optional<v1::WorkerFinished> finished_;
  absl::Status last_error_;
  MonotonicTime last_news_;  // a token, or the start
};

}  // namespace

RelayResult RunRelay(const RelayRequest& request, const RelayOptions& options,
                     WorkerChooser& chooser, RelaySink& sink, const Clock& clock) {
  return Relay(request, options, chooser, sink, clock).Run();
}

}  // namespace kvist::services
