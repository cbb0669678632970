// Which worker a request goes to: the additive cost of CONTROL_PLANE.md, section 2. Pure: facts in,
// an index out.
#ifndef KVIST_SERVICES_FRONTEND_ROUTING_ROUTER_H_
#define KVIST_SERVICES_FRONTEND_ROUTING_ROUTER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace kvist::services {

// What is known of one worker when a request is placed.
struct WorkerView {
  bool usable = true;    // serves the model, is not draining and was not tried for this request
  bool suspect = false;  // its heartbeats are missing: chosen only if nobody else is usable
  int64_t matched_device_tokens = 0;  // of the prompt, in the worker's cache, by tier
  int64_t matched_host_tokens = 0;
  int64_t matched_disk_tokens = 0;
  // The worker's own report; used up to RoutingOptions::max_load_age_ms.
  int64_t reported_prefill_tokens = 0;  // queued
  int64_t reported_sequences = 0;       // running and waiting
  int64_t load_age_ms = 0;
  // This frontend's requests there, left out of the report because they are younger than it.
  int64_t own_recent_prefill_tokens = 0;
  int64_t own_recent_sequences = 0;
  // All of this frontend's requests there: what counts when the report is too old.
  int64_t own_prefill_tokens = 0;  // not yet prefilled
  int64_t own_sequences = 0;
};

struct RoutingOptions {
  double host_credit = 0.75;
  double disk_credit = 0.25;
  // One running sequence weighs as much as this many tokens of prefill: it takes a place in every
  // step.
  int64_t tokens_per_sequence = 16;
  // A worker this far ahead of the least loaded in queued prefill takes no more: bursts of sticky
  // sessions otherwise pile up (measured elsewhere: p95 330 % worse).
  int64_t max_prefill_lead_tokens = 8192;
  // Credit halves when a worker's load exceeds the least one by this many tokens.
  int64_t credit_half_excess_tokens = 4096;
  // An older load view was measured to be worse than none.
  int64_t max_load_age_ms = 5000;
};

// The load of `worker` in tokens: queued prefill and decode.
struct WorkerLoadTokens {
  int64_t prefill = 0;
  int64_t decode = 0;
};
WorkerLoadTokens LoadOf(const WorkerView& worker, const RoutingOptions& options);

// max(0, new + queued prefill - credit) + decode load. `excess_tokens`: the worker's load above the
// least loaded one's.
double RoutingCost(int64_t prompt_tokens, const WorkerView& worker, int64_t excess_tokens,
                   const RoutingOptions& options);

// The index of the cheapest worker; on ties the one with more matched tokens, then the lowest
// index. nullopt: none is usable.
std::optional<size_t> PickWorker(int64_t prompt_tokens, std::span<const WorkerView> workers,
                                 const RoutingOptions& options);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_ROUTING_ROUTER_H_
