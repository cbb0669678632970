#include "services/frontend/routing/router.h"

#include <algorithm>
#include <limits>
#include <tuple>

namespace kvist::services {
namespace {

int64_t Matched(const WorkerView& worker) {
  return worker.matched_device_tokens + worker.matched_host_tokens + worker.matched_disk_tokens;
}

// What PickWorker measures every worker against.
struct Least {
  int64_t prefill = std::numeric_limits<int64_t>::max();
  int64_t load = std::numeric_limits<int64_t>::max();
};

std::optional<size_t> PickAmong(int64_t prompt_tokens, std::span<const WorkerView> workers,
                                const RoutingOptions& options, bool suspect) {
  Least least;
  for (const WorkerView& worker : workers) {
    if (!worker.usable || worker.suspect != suspect) continue;
    const WorkerLoadTokens load = LoadOf(worker, options);
    least.prefill = std::min(least.prefill, load.prefill);
    least.load = std::min(least.load, load.prefill + load.decode);
  }
  std::optional<size_t> best;
  std::tuple<double, int64_t> best_rank;
  for (size_t i = 0; i < workers.size(); ++i) {
    const WorkerView& worker = workers[i];
    if (!worker.usable || worker.suspect != suspect) continue;
    const WorkerLoadTokens load = LoadOf(worker, options);
    // The least loaded worker always passes, so that somebody is left.
    if (load.prefill - least.prefill > options.max_prefill_lead_tokens) continue;
    const int64_t excess = load.prefill + load.decode - least.load;
    const std::tuple<double, int64_t> rank(RoutingCost(prompt_tokens, worker, excess, options),
                                           -Matched(worker));
    if (!best.has_value() || rank < best_rank) {
      best = i;
      best_rank = rank;
    }
  }
  return best;
}

}  // namespace

WorkerLoadTokens LoadOf(const WorkerView& worker, const RoutingOptions& options) {
  if (worker.load_age_ms > options.max_load_age_ms) {
    return {.prefill = worker.own_prefill_tokens,
            .decode = worker.own_sequences * options.tokens_per_sequence};
  }
  return {.prefill = worker.reported_prefill_tokens + worker.own_recent_prefill_tokens,
          .decode = (worker.reported_sequences + worker.own_recent_sequences) *
                    options.tokens_per_sequence};
}

double RoutingCost(int64_t prompt_tokens, const WorkerView& worker, int64_t excess_tokens,
                   const RoutingOptions& options) {
  const WorkerLoadTokens load = LoadOf(worker, options);
  const double half = static_cast<double>(std::max<int64_t>(1, options.credit_half_excess_tokens));
  const double decay = half / (half + static_cast<double>(std::max<int64_t>(0, excess_tokens)));
  const double credit =
      decay * (static_cast<double>(worker.matched_device_tokens) +
               options.host_credit * static_cast<double>(worker.matched_host_tokens) +
               options.disk_credit * static_cast<double>(worker.matched_disk_tokens));
  const double work = static_cast<double>(prompt_tokens + load.prefill) - credit;
  return std::max(0.0, work) + static_cast<double>(load.decode);
}

std::optional<size_t> PickWorker(int64_t prompt_tokens, std::span<const WorkerView> workers,
                                 const RoutingOptions& options) {
  const auto trusted = PickAmong(prompt_tokens, workers, options, /*suspect=*/false);
  return trusted.has_value() ? trusted
                             : PickAmong(prompt_tokens, workers, options, /*suspect=*/true);
}

}  // namespace kvist::services
