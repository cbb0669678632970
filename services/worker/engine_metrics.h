// Brings the worker's metrics up to date with its engine.
#ifndef KVIST_SERVICES_WORKER_ENGINE_METRICS_H_
#define KVIST_SERVICES_WORKER_ENGINE_METRICS_H_

#include <array>
#include <cstdint>
#include <vector>

#include "common/base/clock.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "services/runtime/metrics.h"
#include "worker/engine/engine.h"

namespace kvist::services {

// Single-threaded: on the engine's thread.
class EngineMetrics {
 public:
  // REQUIRES: metrics outlives it.
  // `disk`: null: none.
  EngineMetrics(const worker::Backend& backend, const worker::DiskStore* disk,
                WorkerMetrics* metrics);
  // What the engine took at its start. Once.
  void SetMemory(const std::vector<worker::MemoryPart>& parts);
  // After a step. Block counts are looked at every 100 ms.
  void Update(const worker::EngineStats& stats, const worker::EngineState& state,
              MonotonicTime now);

 private:
  static constexpr size_t kStates = 5;
  struct DiskGauges {
    prometheus::Gauge* cached = nullptr;
    prometheus::Gauge* free = nullptr;
  };

  struct CacheKind {
    worker::CacheOptions cache;
    prometheus::Counter* requests = nullptr;
  };

  void AddCacheKinds(const worker::Backend& backend);
  void AddCacheKind(const worker::CacheOptions& cache);
  void UpdateOffload(const worker::OffloadStats& stats);

  WorkerMetrics* const metrics_;
  worker::EngineStats last_;
  std::array<uint64_t, kEvictionCauses> last_evictions_{};
  MonotonicTime last_blocks_;
  std::vector<std::array<prometheus::Gauge*, kStates>> blocks_;  // by pool
  std::vector<CacheKind> cache_kinds_;    // all that can be asked for
  std::vector<DiskGauges> disk_blocks_;                          // by pool; empty: no disk
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_WORKER_ENGINE_METRICS_H_
