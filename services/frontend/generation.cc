#include "services/frontend/generation.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "cache_manager/block_key.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "services/frontend/limits.h"
#include "services/frontend/response_sink.h"
#include "services/frontend/routing_chooser.h"
#include "services/frontend/samples.h"
#include "services/frontend/session_turn.h"
#include "services/frontend/validate.h"
#include "services/frontend/wire.h"
#include "services/runtime/cache_params.h"

namespace kvist::services {
namespace {

// A client waits this long for its turn to be saved while the manager is away, if its deadline
// allows.
constexpr std::chrono::seconds kMaxSaveWait{30};
// And this long at least, also past the deadline: what was generated should not be lost for a late
// write.
constexpr std::chrono::seconds kMinSaveWait{2};

size_t LabelOf(v1::FinishReason reason) {  // index into kFinishReasonLabels
  return reason == v1::FINISH_REASON_UNSPECIFIED ? kFinishReasons - 1 : reason - 1;
}

class CountedAsInFlight {
 public:
  explicit CountedAsInFlight(FrontendMetrics& metrics) : metrics_(metrics) {
    metrics_.requests_in_flight.Increment();
  }
  ~CountedAsInFlight() { metrics_.requests_in_flight.Decrement(); }
  CountedAsInFlight(const CountedAsInFlight&) = delete;
  CountedAsInFlight& operator=(const CountedAsInFlight&) = delete;

 private:
  FrontendMetrics& metrics_;
};

// The state of one call, built up step by step.
class Generation {
 public:
  Generation(FrontendState& state, const Principal& principal, MonotonicTime deadline,
             ClientStream& client)
      : state_(state),
        principal_(principal),
        deadline_(deadline),
        client_(client),
        admitted_at_(state.clock.Now()) {}

  absl::Status Generate(const v1::GenerateRequest& wire) {
    record_ = wire;
    KVIST_RETURN_IF_ERROR(Check());
    if (!request_.session.empty()) {
      KVIST_ASSIGN_OR_RETURN(turn_,
                             SessionTurn::Begin({.session = request_.session,
                                                 .turn = TurnId(DrawName(state_.random, "turn-")),
                                                 .record = record_,
                                                 .model_fingerprint = model_->fingerprint()},
                                                &state_.manager, &state_.running_turns));
    }
    return Run(/*first_index=*/0);
  }

  // `open` holds the record of a turn that nobody runs, `entry` is the right to run it here.
  absl::Status ResumeOpen(const v1::ResumeRequest& resume, const v1::GetTurnResponse& open,
                          std::unique_ptr<RunningTurns::Entry> entry) {
    if (!record_.ParseFromString(open.request())) {
      return absl::DataLossError("the open turn's record cannot be read");
    }
    KVIST_RETURN_IF_ERROR(Check());
    KVIST_ASSIGN_OR_RETURN(turn_,
                           SessionTurn::TakeOver(resume, open, &state_.manager, std::move(entry)));
    return Run(resume.next_index());
  }

 private:
  // Everything that can be refused before a turn begins.
  absl::Status Check() {
    if (!record_.sampling().has_seed()) {
      record_.mutable_sampling()->set_seed(state_.random.Next());
    }
    if (record_.request_id().empty()) record_.set_request_id(DrawName(state_.random, "req-"));
    request_ = FromWire(record_, principal_);
    KVIST_RETURN_IF_ERROR(ValidateRequest(request_));
    KVIST_ASSIGN_OR_RETURN(model_, state_.directory.FindModel(request_.model));
    return ValidateForModel(request_, model_->limits());
  }

  absl::Status Run(int64_t first_index) {
    const std::span<const int32_t> history =
        turn_ == nullptr ? std::span<const int32_t>() : turn_->history();
    KVIST_ASSIGN_OR_RETURN(new_ids_, model_->EncodePrompt(request_.prompt, history));
    prompt_ids_.assign(history.begin(), history.end());
    prompt_ids_.insert(prompt_ids_.end(), new_ids_.begin(), new_ids_.end());
    KVIST_RETURN_IF_ERROR(
        ValidatePromptLength(static_cast<int64_t>(prompt_ids_.size()), model_->limits()));
    const v1::WorkerGenerateRequest base = WorkerRequest();
    // The session's own wish was not seen by Check.
    KVIST_RETURN_IF_ERROR(ValidateCache(base.cache(), model_->limits()));
    attention_ = SpanFromProto(base.cache().attention());
    FindKeysAndSession(base.cache());
    const SamplesRequest samples{
        .relay = {.base = base,
                  .deadline = deadline_,
                  .vocabulary = model_->limits().vocab,
                  .is_stop = [this](int32_t id) { return model_->IsStop(id, request_.stop); }},
        .session_ids = session_ids_,
        .resumable = turn_ != nullptr,
        .make_chooser =
            [&] { return std::make_unique<RoutingChooser>(&state_, ChooserRequest(base.cache())); },
        .make_sink = [&](int32_t sample,
                         ClientStream* client) { return SinkOf(sample, first_index, client); }};
    std::vector<SampleOutcome> outcomes = RunSamples(
        samples, {.relay = state_.relay, .in_flight = state_.in_flight, .clock = state_.clock},
        client_);
    if (outcomes[0].result.lost && turn_ != nullptr) {
      absl::Status& status = outcomes[0].result.status;
      const auto kept = static_cast<int64_t>(outcomes[0].kept_ids.size());
      status = WithDetails(status, {.resume_index = std::max(first_index, kept)});
    }
    return Finish(outcomes);
  }

  std::unique_ptr<ResponseSink> SinkOf(int32_t sample, int64_t first_index,
                                       ClientStream* client) const {
    return std::make_unique<ResponseSink>(
        client, OutputText(&model_->tokenizer(), request_.stop.stop_strings),
        ResponseSink::Options{
            .started = Started(),
            .sample = sample,
            .first_index = first_index,
            .cancelled = [this] { return turn_ != nullptr && turn_->cancelled(); },
            .metrics = &state_.metrics,
            .clock = &state_.clock});
  }

  v1::WorkerGenerateRequest WorkerRequest() const {
    const auto prompt_tokens = static_cast<int64_t>(prompt_ids_.size());
    v1::WorkerGenerateRequest base;
    base.set_request_id(record_.request_id());
    base.set_tenant_id(principal_.tenant.value());
    base.set_tenant_salt(
        cache_manager::TenantSalt(state_.cluster_secret, principal_.tenant.value()));
    base.mutable_prompt_ids()->Add(prompt_ids_.begin(), prompt_ids_.end());
    *base.mutable_sampling() =
        ResolveSampling(request_, model_->sampling_defaults(), record_.sampling().seed());
    *base.mutable_stop() =
        ResolveStop(request_.stop, model_->limits().context_tokens - prompt_tokens);
    *base.mutable_cache() = WorkerCache();
    base.set_priority(request_.priority);
    return base;
  }

  v1::CacheParams WorkerCache() const {
    v1::CacheParams cache =
        ResolveCache(request_.cache, turn_ == nullptr ? v1::CacheParams() : turn_->cache());
    const ModelLimits& limits = model_->limits();
    // By name, so that every worker takes the same one.
    if (cache.kv_format().empty() && !limits.kv_formats.empty()) {
      cache.set_kv_format(limits.kv_formats.front());
    }
    // A session that was made where there was a tier goes on where there is none.
    const bool of_session = request_.cache.offload == v1::CacheParams::OFFLOAD_UNSPECIFIED;
    if (of_session && !ValidateOffload(cache.offload(), limits).ok()) {
      cache.set_offload(v1::CacheParams::OFF);
    }
    return cache;
  }

  void FindKeysAndSession(const v1::CacheParams& cache) {
    session_ids_.resize(static_cast<size_t>(request_.samples));
    if (turn_ != nullptr) session_ids_[0] = request_.session.value();
    if (cache.allocation() == v1::CacheParams::NONE) return;
    keys_ = KeysOf(prompt_ids_);
    if (turn_ != nullptr) return;
    MutexLock lock(state_.implicit_mutex);
    // Each answer may be continued.
    for (std::string& id : session_ids_) id = state_.implicit.Begin(keys_).value();
    implicit_ = true;
  }

  std::vector<cache_manager::BlockKey> KeysOf(const std::vector<int32_t>& ids) const {
    const cache_manager::KeyScope scope{
        .model_fingerprint = model_->fingerprint(),
        .attention = cache_manager::AttentionText(attention_),
        .block_tokens = model_->block_tokens(),
        .tenant_salt = cache_manager::TenantSalt(state_.cluster_secret, principal_.tenant.value())};
    return cache_manager::KeysOf(cache_manager::RootKey(scope), ids, model_->block_tokens());
  }

  RoutingChooser::Request ChooserRequest(const v1::CacheParams& cache) const {
    return {.fingerprint = model_->fingerprint(),
            .cache = cache,
            .block_tokens = model_->block_tokens(),
            .prompt_tokens = static_cast<int64_t>(prompt_ids_.size()),
            .keys = keys_};
  }

  v1::Started Started() const {
    v1::Started started;
    started.set_request_id(record_.request_id());
    started.set_session_id(session_ids_[0]);
    if (turn_ != nullptr) started.set_turn_id(turn_->turn().value());
    started.set_seed(record_.sampling().seed());
    started.set_prompt_tokens(static_cast<int64_t>(prompt_ids_.size()));
    return started;
  }

  // Saves the turn, tells the client.
  absl::Status Finish(const std::vector<SampleOutcome>& outcomes) {
    const RelayResult& result = outcomes[0].result;
    size_t kept_tokens = 0;
    absl::Status status;
    for (const SampleOutcome& outcome : outcomes) {
      kept_tokens += outcome.kept_ids.size();
      if (status.ok()) status = outcome.result.status;
    }
    v1::GenerateResponse response;
    v1::Finished& finished = *response.mutable_finished();
    finished.set_reason(result.reason);
    finished.set_attempts(result.attempts);
    *finished.mutable_usage() = result.usage;
    finished.mutable_usage()->set_prompt_tokens(static_cast<int64_t>(prompt_ids_.size()));
    finished.mutable_usage()->set_generated_tokens(static_cast<int64_t>(kept_tokens));
    // After a replay the worker's prompt held generated tokens too.
    finished.mutable_usage()->set_cached_tokens(
        std::min<int64_t>(result.usage.cached_tokens(), static_cast<int64_t>(prompt_ids_.size())));
    SetTimings(result, finished.mutable_timings());
    EndSession(outcomes, &finished);
    Count(outcomes, finished);
    // A refusal before the first token is a status alone.
    if (result.status.ok() || result.attempts > 0) client_.Write(response);
    return status;
  }

  void SetTimings(const RelayResult& result, v1::Timings* timings) const {
    *timings = result.timings;
    timings->set_total_ms(1e3 * SecondsBetween(admitted_at_, state_.clock.Now()));
    const auto later_tokens = static_cast<double>(result.generated.size()) - 1;
    if (later_tokens < 0) return;
    timings->set_time_to_first_token_ms(1e3 * SecondsBetween(admitted_at_, result.first_token_at));
    const double seconds = SecondsBetween(result.first_token_at, result.last_token_at);
    if (result.attempts != 1 || timings->decode_tokens_per_second() == 0) {
      timings->set_decode_tokens_per_second(seconds > 0 ? later_tokens / seconds : 0);
    }
  }

  void EndImplicitSession(const std::string& id, const std::vector<int32_t>& kept_ids) {
    std::vector<int32_t> all = prompt_ids_;
    all.insert(all.end(), kept_ids.begin(), kept_ids.end());
    const std::vector<cache_manager::BlockKey> keys = KeysOf(all);
    MutexLock lock(state_.implicit_mutex);
    state_.implicit.End(SessionId(id), keys);
  }

  void EndSession(const std::vector<SampleOutcome>& outcomes, v1::Finished* finished) {
    const RelayResult& result = outcomes[0].result;
    const std::vector<int32_t>& kept_ids = outcomes[0].kept_ids;
    for (size_t i = 0; implicit_ && i < outcomes.size(); ++i) {
      EndImplicitSession(session_ids_[i], outcomes[i].kept_ids);
    }
    if (turn_ != nullptr && result.lost) return turn_->LeaveOpen();
    // Nothing came of it: the turn's destructor knows what to do.
    if (turn_ == nullptr || (kept_ids.empty() && !result.status.ok())) return;
    const MonotonicTime now = state_.clock.Now();
    const MonotonicTime until =
        std::max(now + kMinSaveWait, std::min<MonotonicTime>(deadline_, now + kMaxSaveWait));
    const TurnSaved saved = turn_->End({.prompt_ids = new_ids_,
                                        .generated_ids = kept_ids,
                                        .text_bytes = outcomes[0].text_bytes,
                                        .reason = result.reason},
                                       until);
    finished->set_turn_saved(saved.saved);
    if (saved.saved) finished->set_session_version(static_cast<int64_t>(saved.version));
  }

  void Count(const std::vector<SampleOutcome>& outcomes, const v1::Finished& finished) {
    const RelayResult& result = outcomes[0].result;
    FrontendMetrics& metrics = state_.metrics;
    metrics.e2e_request_latency_seconds.Observe(finished.timings().total_ms() / 1e3);
    metrics.request_success_total[LabelOf(result.reason)]->Increment();
    metrics.prompt_tokens_total.Increment(static_cast<double>(prompt_ids_.size()));
    for (const SampleOutcome& outcome : outcomes) {
      metrics.generation_tokens_total.Increment(
          static_cast<double>(outcome.result.generated.size()));
      if (outcome.result.attempts > 1) {
        metrics.request_replays_total.Increment(outcome.result.attempts - 1);
      }
    }
    metrics.prompt_tokens_cached_total.Increment(
        static_cast<double>(finished.usage().cached_tokens()));
    ComparePromise(result);
    if (result.generated.empty()) return;
    metrics.time_to_first_token_seconds.Observe(finished.timings().time_to_first_token_ms() / 1e3);
    metrics.request_queue_time_seconds.Observe(finished.timings().queue_ms() / 1e3);
  }

  // What the mirror promised against what the worker found. Only where both are of one prompt on
  // one worker, and the worker told: not after a replay or the cut of a stop string.
  void ComparePromise(const RelayResult& result) {
    if (!result.has_usage || result.attempts != 1) return;
    // The last token is computed always.
    const int64_t promised =
        std::min(result.located_tokens, static_cast<int64_t>(prompt_ids_.size()) - 1);
    state_.metrics.prompt_tokens_located_total.Increment(static_cast<double>(promised));
    if (promised < 1) return;
    const bool doubted = state_.cache_drift.Record(
        result.worker_id, result.worker_incarnation,
        {.promised_tokens = promised, .found_tokens = result.usage.cached_tokens()});
    if (doubted) {
      LogWarning("worker {} had less than {} % of the cached tokens that its mirror promised",
                 result.worker_id, CacheDrift::kLeastPercent);
    }
  }

  FrontendState& state_;
  const Principal& principal_;
  const MonotonicTime deadline_;
  ClientStream& client_;
  const MonotonicTime admitted_at_;

  v1::GenerateRequest record_;  // the request, with id and seed
  InferenceRequest request_;
  std::shared_ptr<const ServedModel> model_;
  std::unique_ptr<SessionTurn> turn_;
  std::vector<int32_t> new_ids_;     // the prompt without the history
  std::vector<int32_t> prompt_ids_;  // with it
  cache_manager::AttentionSpan attention_;
  std::vector<cache_manager::BlockKey> keys_;
  std::vector<std::string> session_ids_;  // by sample: the turn's, or implicit ones
  bool implicit_ = false;
};

// Tells an ended turn from its stored ids.
absl::Status TellEnded(FrontendState& state, const v1::ResumeRequest& resume,
                       const v1::GetTurnResponse& ended, ClientStream& client) {
  if (resume.next_index() > ended.generated_ids_size()) {
    return FieldOutOfRange("next_index",
                           absl::StrCat("the turn has ", ended.generated_ids_size(), " tokens"));
  }
  v1::GetSessionRequest get;
  get.set_id(resume.session_id());
  KVIST_ASSIGN_OR_RETURN(const v1::Session session,
                         state.manager.Call(&v1::Sessions::StubInterface::Get, get));
  KVIST_ASSIGN_OR_RETURN(const auto model, state.directory.FindModel(session.model_fingerprint()));
  const std::vector<int32_t> ids(ended.generated_ids().begin(), ended.generated_ids().end());
  KVIST_RETURN_IF_ERROR(ValidateIds("turn", ids, model->limits().vocab));
  v1::Started started;
  started.set_session_id(resume.session_id());
  started.set_turn_id(resume.turn_id());
  started.set_seed(ended.seed());
  ResponseSink sink(
      &client, OutputText(&model->tokenizer(), {}),
      {.started = std::move(started),
       .first_index = resume.next_index(),
       .max_text_bytes = ended.has_answer_text_bytes() ? ended.answer_text_bytes()
                                                       : std::numeric_limits<int64_t>::max()});
  if (!sink.OnStarted("")) return absl::CancelledError("cancelled");
  v1::Token token;
  for (const int32_t id : ids) {
    token.set_id(id);
    if (sink.OnTokens({&token, 1}) == RelaySink::Verdict::kGone) {
      return absl::CancelledError("cancelled");
    }
    token.set_index(token.index() + 1);
  }
  sink.Flush();
  v1::GenerateResponse response;
  response.mutable_finished()->set_reason(ended.reason());
  response.mutable_finished()->mutable_usage()->set_generated_tokens(ended.generated_ids_size());
  response.mutable_finished()->set_turn_saved(true);
  client.Write(response);
  return absl::OkStatus();
}

// Runs `call` while the request is admitted to so many places and counted as in flight.
absl::Status WhileAdmitted(FrontendState& state, int32_t places,
                           absl::FunctionRef<absl::Status()> call) {
  auto ticket = state.admission.Admit(places);
  if (!ticket.ok()) {
    state.metrics.requests_rejected_total.Increment();
    return ticket.status();
  }
  const CountedAsInFlight counted(state.metrics);
  return call();
}

absl::Status Resume(FrontendState& state, const v1::ResumeRequest& request,
                    const Principal& principal, MonotonicTime deadline, ClientStream& client) {
  KVIST_RETURN_IF_ERROR(ValidateId("session_id", request.session_id()));
  KVIST_RETURN_IF_ERROR(ValidateId("turn_id", request.turn_id()));
  if (request.next_index() < 0) return FieldOutOfRange("next_index", "must not be negative");
  // Before asking how the turn stands, so that nobody here ends it in between.
  auto entry =
      state.running_turns.TryEnter(SessionId(request.session_id()), TurnId(request.turn_id()));
  v1::GetTurnRequest get;
  get.set_session_id(request.session_id());
  get.set_turn_id(request.turn_id());
  KVIST_ASSIGN_OR_RETURN(const v1::GetTurnResponse turn, state.manager.GetTurn(get));
  if (!turn.open()) {
    entry.reset();
    return TellEnded(state, request, turn, client);
  }
  if (entry == nullptr) return absl::AbortedError("the turn is being streamed to another client");
  return Generation(state, principal, deadline, client).ResumeOpen(request, turn, std::move(entry));
}

}  // namespace

absl::Status RunGenerate(FrontendState& state, const v1::GenerateRequest& request,
                         const Principal& principal, MonotonicTime deadline, ClientStream& client) {
  // Each sample runs as a request. What is no number of samples is refused once inside.
  const int32_t places = std::clamp<int32_t>(request.samples(), 1, kMaxSamples);
  return WhileAdmitted(state, places, [&] {
    return Generation(state, principal, deadline, client).Generate(request);
  });
}

absl::Status RunResume(FrontendState& state, const v1::ResumeRequest& request,
                       const Principal& principal, MonotonicTime deadline, ClientStream& client) {
  return WhileAdmitted(state, 1,
                       [&] { return Resume(state, request, principal, deadline, client); });
}

}  // namespace kvist::services
