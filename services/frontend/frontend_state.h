// What all handlers of a frontend share. Nothing in it outlives the process: a frontend may die at
// any time.
#ifndef KVIST_SERVICES_FRONTEND_FRONTEND_STATE_H_
#define KVIST_SERVICES_FRONTEND_FRONTEND_STATE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "services/frontend/admission.h"
#include "services/frontend/cache_drift.h"
#include "services/frontend/implicit_sessions.h"
#include "services/frontend/in_flight.h"
#include "services/frontend/lease_keeper.h"
#include "services/frontend/limits.h"
#include "services/frontend/manager_client.h"
#include "services/frontend/model_directory.h"
#include "services/frontend/random_source.h"
#include "services/frontend/relay.h"
#include "services/frontend/routing/router.h"
#include "services/frontend/running_turns.h"
#include "services/runtime/id_syntax.h"
#include "services/runtime/metrics.h"

namespace kvist::services {

// Thread-safe: each part is, implicit sessions under their lock.
struct FrontendState {
  FrontendState(std::shared_ptr<grpc::Channel> manager_channel,
                ModelDirectoryOptions directory_options, int32_t max_running_requests,
                prometheus::Registry& registry)
      : manager(std::move(manager_channel)),
        directory(std::move(directory_options), &manager, &clock),
        admission(max_running_requests),
        implicit(std::string(kImplicitSessionPrefix) + DrawName(random, "") + "-",
                 ImplicitSessions::Limits()),
        metrics(registry) {}

  SystemClock clock;
  SystemRandom random;
  ManagerClient manager;
  ModelDirectory directory;
  Admission admission;
  InFlight in_flight;
  CacheDrift cache_drift;
  RunningTurns running_turns;
  LeaseKeeper leases{&manager, &running_turns};
  Mutex implicit_mutex;
  ImplicitSessions implicit ABSL_GUARDED_BY(implicit_mutex);
  FrontendMetrics metrics;
  RoutingOptions routing;
  RelayOptions relay;
  std::string cluster_secret;
  Admission session_files{kMaxSessionFilesAtOnce};
  // What session files are sealed with (worker/kv/session_file.h): made of the cluster's secret, or
  // drawn at the start where there is none. Never one that others can know: blocks are believed of
  // its files alone, unless `trust_snapshots`.
  std::string session_seal_key;
  bool trust_snapshots = false;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_FRONTEND_STATE_H_
