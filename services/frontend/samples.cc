#include "services/frontend/samples.h"

#include <algorithm>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "common/base/status.h"

namespace kvist::services {
namespace {

// Where the first sample runs: what the others wait for. Thread-safe.
class FirstWorker {
 public:
  struct Worker {
    std::string id;
    uint64_t incarnation = 0;
    std::shared_ptr<v1::Worker::StubInterface> stub;
  };
  // It was sent there.
  void Chosen(Worker worker) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    if (!taken_) worker_ = std::move(worker);
  }
  // The one chosen last has taken it.
  void Taken() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    taken_ = known_ = true;
    changed_.NotifyAll();
  }
  // It has ended. No-op if it was taken.
  void Over() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    known_ = true;
    changed_.NotifyAll();
  }
  // Blocks until one of the two. nullptr: no worker took it.
  const Worker* Wait() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    while (!known_) changed_.Wait(mutex_);
    return taken_ ? &worker_ : nullptr;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool known_ ABSL_GUARDED_BY(mutex_) = false;
  bool taken_ ABSL_GUARDED_BY(mutex_) = false;
  Worker worker_ ABSL_GUARDED_BY(mutex_);  // does not change once taken_
};

// Tells what the first sample's chooser chose. Single-threaded.
class FirstChooser final : public WorkerChooser {
 public:
  FirstChooser(std::unique_ptr<WorkerChooser> chooser, FirstWorker* first)
      : chooser_(std::move(chooser)), first_(first) {}

  absl::StatusOr<ChosenWorker> Choose(const WorkerLives& failed) override {
    auto worker = chooser_->Choose(failed);
    if (worker.ok()) {
      first_->Chosen({.id = worker->id, .incarnation = worker->incarnation, .stub = worker->stub});
    }
    return worker;
  }
  void MarkFailed(const ChosenWorker& worker) override { chooser_->MarkFailed(worker); }

 private:
  const std::unique_ptr<WorkerChooser> chooser_;
  FirstWorker* const first_;
};

// Chooses the first sample's worker while it lives. Single-threaded.
class SiblingChooser final : public WorkerChooser {
 public:
  SiblingChooser(std::unique_ptr<WorkerChooser> chooser, const FirstWorker::Worker& first,
                 const SamplesContext& context)
      : chooser_(std::move(chooser)), first_(first), context_(context) {}

  absl::StatusOr<ChosenWorker> Choose(const WorkerLives& failed) override {
    if (failed.contains({first_.id, first_.incarnation})) return chooser_->Choose(failed);
    return ChosenWorker{
        .id = first_.id,
        .incarnation = first_.incarnation,
        .stub = first_.stub,
        .place = context_.in_flight.Enter(first_.id, /*prefill_tokens=*/0, context_.clock.Now())};
  }
  void MarkFailed(const ChosenWorker& worker) override { chooser_->MarkFailed(worker); }

 private:
  const std::unique_ptr<WorkerChooser> chooser_;
  const FirstWorker::Worker first_;
  const SamplesContext& context_;
};

// The client's stream for several threads. Thread-safe.
class SharedStream {
 public:
  explicit SharedStream(ClientStream* client) : client_(client) {}

  bool Write(const v1::GenerateResponse& response) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    return client_->Write(response);
  }
  // Does not wait for a Write: who asks has a worker to listen to.
  bool Gone() { return client_->Gone(); }

 private:
  Mutex mutex_;  // held in client_->Write
  ClientStream* const client_;
};

// One sample's view of it: what is told once for all comes from the first. Used by one thread.
class SampleStream final : public ClientStream {
 public:
  // `first`: told when a worker takes the sample; null for all samples but the first.
  SampleStream(SharedStream* shared, FirstWorker* first) : shared_(shared), first_(first) {}

  bool Write(const v1::GenerateResponse& response) override {
    const bool once = response.has_started() || response.has_progress();
    if (first_ == nullptr && once) return !shared_->Gone();
    const bool written = shared_->Write(response);
    if (response.has_started()) first_->Taken();
    return written;
  }
  bool Gone() override { return shared_->Gone(); }

 private:
  SharedStream* const shared_;
  FirstWorker* const first_;
};

RelayRequest RequestOf(const SamplesRequest& request, int32_t sample) {
  RelayRequest relay = request.relay;
  relay.base.set_session_id(request.session_ids[static_cast<size_t>(sample)]);
  if (sample == 0) return relay;
  relay.base.set_fork_of(request.relay.base.request_id());
  relay.base.set_request_id(absl::StrCat(request.relay.base.request_id(), ".", sample));
  v1::SamplingParams& sampling = *relay.base.mutable_sampling();
  sampling.set_sample_index(sampling.sample_index() + sample);
  return relay;
}

SampleOutcome RunOne(const SamplesRequest& request, int32_t sample, const SamplesContext& context,
                     WorkerChooser& chooser, ClientStream& client) {
  const std::unique_ptr<ResponseSink> sink = request.make_sink(sample, &client);
  SampleOutcome outcome{
      .result = RunRelay(RequestOf(request, sample), context.relay, chooser, *sink, context.clock)};
  // What was held back from an answer that can be resumed stays so: the text of the first n tokens
  // is the same in every run, and the client has a whole number of them.
  const bool lost = outcome.result.lost && request.resumable;
  if (!lost && sink->Flush() && outcome.result.status.ok()) outcome.result.reason = v1::STOP;
  outcome.kept_ids = sink->kept_ids();
  outcome.text_bytes = sink->text_bytes();
  return outcome;
}

// All samples of one call. Single-threaded, but for what its threads run.
class Samples {
 public:
  Samples(const SamplesRequest& request, const SamplesContext& context, ClientStream& client)
      : request_(request),
        context_(context),
        shared_(&client),
        outcomes_(request.session_ids.size()) {}

  std::vector<SampleOutcome> Run() {
    std::vector<std::thread> threads = StartSiblings();
    FirstChooser chooser(request_.make_chooser(), &first_);
    SampleStream stream(&shared_, &first_);
    outcomes_[0] = RunOne(request_, 0, context_, chooser, stream);
    first_.Over();
    TellEnd(0);
    for (std::thread& thread : threads) thread.join();
    for (SampleOutcome& outcome : outcomes_) {
      if (outcome.result.reason != v1::FINISH_REASON_UNSPECIFIED) continue;
      outcome.result.reason = outcomes_[0].result.reason;  // it never began
      outcome.result.status = outcomes_[0].result.status;
    }
    return std::move(outcomes_);
  }

 private:
  std::vector<std::thread> StartSiblings() {
    std::vector<std::thread> threads;
    threads.reserve(outcomes_.size());
    for (int32_t sample = 1; sample < static_cast<int32_t>(outcomes_.size()); ++sample) {
      try {
        threads.emplace_back([this, sample] { RunSibling(sample); });
      } catch (const std::system_error& error) {  // the process may have no more
        LogWarning("request {}: no thread for sample {}: {}", request_.relay.base.request_id(),
                   sample, std::string(error.what()));
        RelayResult& result = outcomes_[static_cast<size_t>(sample)].result;
        result.reason = v1::ERROR;
        result.status = Overloaded("the frontend has as many threads as it may", 1'000);
      }
    }
    return threads;
  }

  void RunSibling(int32_t sample) {
    const FirstWorker::Worker* const worker = first_.Wait();
    if (worker == nullptr) return;
    SiblingChooser chooser(request_.make_chooser(), *worker, context_);
    SampleStream stream(&shared_, nullptr);
    outcomes_[static_cast<size_t>(sample)] = RunOne(request_, sample, context_, chooser, stream);
    TellEnd(sample);
  }

  void TellEnd(int32_t sample) {
    const SampleOutcome& outcome = outcomes_[static_cast<size_t>(sample)];
    if (outcome.result.attempts == 0) return;  // a refusal: the call's status tells it
    v1::GenerateResponse response;
    v1::SampleFinished& finished = *response.mutable_sample_finished();
    finished.set_sample(sample);
    finished.set_reason(outcome.result.reason);
    finished.set_generated_tokens(static_cast<int64_t>(outcome.kept_ids.size()));
    finished.set_cached_tokens(std::min<int64_t>(outcome.result.usage.cached_tokens(),
                                                 request_.relay.base.prompt_ids_size()));
    finished.set_attempts(outcome.result.attempts);
    finished.set_worker_id(outcome.result.worker_id);
    shared_.Write(response);
  }

  const SamplesRequest& request_;
  const SamplesContext& context_;
  SharedStream shared_;
  FirstWorker first_;
  std::vector<SampleOutcome> outcomes_;  // each written by its own thread
};

}  // namespace

std::vector<SampleOutcome> RunSamples(const SamplesRequest& request, const SamplesContext& context,
                                      ClientStream& client) {
  if (request.session_ids.size() > 1) return Samples(request, context, client).Run();
  const std::unique_ptr<WorkerChooser> chooser = request.make_chooser();
  std::vector<SampleOutcome> outcomes;
  outcomes.push_back(RunOne(request, 0, context, *chooser, client));
  return outcomes;
}

}  // namespace kvist::services
