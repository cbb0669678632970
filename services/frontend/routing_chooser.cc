#include "services/frontend/routing_chooser.h"

#include <algorithm>
#include <utility>

#include "common/base/status.h"
#include "services/frontend/validate.h"

namespace kvist::services {

RoutingChooser::RoutingChooser(FrontendState* state, Request request)
    : state_(state), request_(std::move(request)) {}

absl::StatusOr<ChosenWorker> RoutingChooser::Choose(const WorkerLives& failed) {
  if (!located_) Locate();
  located_ = true;
  const std::vector<KnownWorker> workers = state_->directory.WorkersOf(request_.fingerprint);
  std::vector<WorkerView> views;
  views.reserve(workers.size());
  for (const KnownWorker& worker : workers) views.push_back(ViewOf(worker, failed));
  auto picked = Pick(workers, views, request_.cache.offload());
  // An answer that has begun goes on where its blocks have no tier to go to, too.
  if (!picked.has_value() && chosen_) picked = Pick(workers, views, v1::CacheParams::OFF);
  if (!picked.has_value()) {
    const bool ready =
        std::any_of(views.begin(), views.end(), [](const WorkerView& view) { return view.usable; });
    return Unavailable(ErrorReason::kNoWorker,
                       ready ? "no worker that serves what the request asks of its cache is ready; "
                               "try again in a moment"
                             : "no worker is ready; try again in a moment");
  }
  chosen_ = true;
  const KnownWorker& worker = workers[*picked];
  const WorkerView& view = views[*picked];
  const int64_t matched =
      view.matched_device_tokens + view.matched_host_tokens + view.matched_disk_tokens;
  // No promise of the slower tiers: the worker computes what that is faster for.
  return ChosenWorker{.id = worker.id,
                      .incarnation = worker.incarnation,
                      .stub = worker.stub,
                      .located_tokens = view.matched_device_tokens,
                      .place = state_->in_flight.Enter(worker.id, request_.prompt_tokens - matched,
                                                       state_->clock.Now())};
}

std::optional<size_t> RoutingChooser::Pick(const std::vector<KnownWorker>& workers,
                                           std::vector<WorkerView> views,
                                           v1::CacheParams::Offload offload) const {
  for (size_t i = 0; i < workers.size(); ++i) views[i].usable &= Serves(workers[i], offload);
  return PickWorker(request_.prompt_tokens, views, state_->routing);
}

void RoutingChooser::MarkFailed(const ChosenWorker& worker) {
  state_->directory.MarkFailed(worker.id, worker.incarnation);
}

void RoutingChooser::Locate() {
  if (request_.keys.empty() || !state_->manager.configured()) return;
  v1::LocateRequest request;
  request.set_model_fingerprint(request_.fingerprint);
  for (const cache_manager::BlockKey& key : request_.keys) {
    request.mutable_keys()->append(reinterpret_cast<const char*>(key.bytes.data()),
                                   key.bytes.size());
  }
  request.set_kv_format(request_.cache.kv_format());
  request.set_block_tokens(request_.block_tokens);
  const WorkerLives doubted = state_->cache_drift.TakeDoubted();
  for (const auto& [id, incarnation] : doubted) {
    v1::WorkerLife& life = *request.add_doubted();
    life.set_worker_id(id);
    life.set_incarnation(incarnation);
  }
  const MonotonicTime asked_at = state_->clock.Now();
  *request.mutable_attention() = request_.cache.attention();
  const auto response = state_->manager.Locate(request);
  if (!response.ok()) {  // the request goes on by what this frontend knows
    state_->cache_drift.PutBack(doubted);
    return;
  }
  for (const v1::WorkerMatch& match : response->workers()) {
    state_->directory.Learn(match.worker(), asked_at);
    matched_[match.worker().worker_id()] = MatchedOf(match);
  }
}

RoutingChooser::Matched RoutingChooser::MatchedOf(const v1::WorkerMatch& match) const {
  int64_t left = request_.prompt_tokens;
  const auto take = [&left](int64_t tokens) {
    const int64_t taken = std::clamp<int64_t>(tokens, 0, left);
    left -= taken;
    return taken;
  };
  Matched matched{.device = take(match.matched_device_tokens())};
  const bool disk = request_.cache.offload() == v1::CacheParams::DISK;
  if (disk || request_.cache.offload() == v1::CacheParams::HOST) {
    matched.host = take(match.matched_host_tokens());
  }
  if (disk) matched.disk = take(match.matched_disk_tokens());
  return matched;
}

bool RoutingChooser::Serves(const KnownWorker& worker, v1::CacheParams::Offload offload) const {
  if (!worker.limits.has_value()) return true;
  v1::CacheParams cache = request_.cache;
  cache.set_offload(offload);
  return ValidatePromptLength(request_.prompt_tokens, *worker.limits).ok() &&
         ValidateCache(cache, *worker.limits).ok();
}

WorkerView RoutingChooser::ViewOf(const KnownWorker& worker, const WorkerLives& failed) const {
  const MonotonicTime now = state_->clock.Now();
  WorkerView view;
  view.usable = !worker.load.draining() && !failed.contains({worker.id, worker.incarnation});
  view.suspect = worker.suspect || now < worker.failed_until || !worker.limits.has_value();
  if (const auto found = matched_.find(worker.id); found != matched_.end()) {
    view.matched_device_tokens = found->second.device;
    view.matched_host_tokens = found->second.host;
    view.matched_disk_tokens = found->second.disk;
  }
  view.reported_prefill_tokens = static_cast<int64_t>(worker.load.queued_prefill_tokens());
  view.reported_sequences =
      static_cast<int64_t>(worker.load.running_sequences()) + worker.load.waiting_sequences();
  view.load_age_ms =
      std::chrono::duration_cast<std::chrono::milliseconds>(now - worker.load_at).count();
  const InFlight::Sum own = state_->in_flight.SumOf(worker.id, worker.load_at);
  view.own_prefill_tokens = own.prefill_tokens;
  view.own_sequences = own.sequences;
  view.own_recent_prefill_tokens = own.recent_prefill_tokens;
  view.own_recent_sequences = own.recent_sequences;
  return view;
}

}  // namespace kvist::services
