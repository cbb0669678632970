// Chooses a worker for a request: facts from the manager, the workers and this frontend, judged by
// routing/router.h.
#ifndef KVIST_SERVICES_FRONTEND_ROUTING_CHOOSER_H_
#define KVIST_SERVICES_FRONTEND_ROUTING_CHOOSER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "cache_manager/block_key.h"
#include "services/frontend/frontend_state.h"
#include "services/frontend/relay.h"

namespace kvist::services {

// For one request. Single-threaded.
class RoutingChooser final : public WorkerChooser {
 public:
  struct Request {
    std::string fingerprint;
    v1::CacheParams cache;  // of a format that is served
    int32_t block_tokens = 16;
    int64_t prompt_tokens = 0;
    std::vector<cache_manager::BlockKey> keys;  // of the prompt; empty: the cache is not used
  };
  // REQUIRES: state outlives it.
  RoutingChooser(FrontendState* state, Request request);

  // Asks the manager the first time; a replay goes by what is known.
  absl::StatusOr<ChosenWorker> Choose(const WorkerLives& failed) override;
  void MarkFailed(const ChosenWorker& worker) override;

 private:
  // Of the prompt, in a worker's cache, by tier.
  struct Matched {
    int64_t device = 0, host = 0, disk = 0;
  };

  void Locate();
  // What the request will look at.
  Matched MatchedOf(const v1::WorkerMatch& match) const;
  // Whether the worker serves what the request asks for. One that has not told yet may.
  bool Serves(const KnownWorker& worker, v1::CacheParams::Offload offload) const;
  std::optional<size_t> Pick(const std::vector<KnownWorker>& workers, std::vector<WorkerView> views,
                             v1::CacheParams::Offload offload) const;
  WorkerView ViewOf(const KnownWorker& worker, const WorkerLives& failed) const;

  FrontendState* const state_;
  const Request request_;
  bool located_ = false;
  bool chosen_ = false;                                // once already
  absl::flat_hash_map<std::string, Matched> matched_;  // by worker
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_ROUTING_CHOOSER_H_
