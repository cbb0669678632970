// Every metric of every role: name, unit and help are declared here and nowhere else. Names mirror
// vLLM's where the meaning is the same. Labels never hold a session, a tenant or text of users.
#ifndef KVIST_SERVICES_RUNTIME_METRICS_H_
#define KVIST_SERVICES_RUNTIME_METRICS_H_

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace kvist::services {

enum class MetricType : uint8_t { kCounter, kGauge, kHistogram };
enum class MetricRole : uint8_t { kFrontend, kWorker, kCacheManager };

struct MetricDescription {
  MetricRole role;
  MetricType type;
  const char* name;
  const char* unit;
  const char* labels;  // comma-separated names; empty: none
  const char* help;
};

// All metrics of all roles, in the order of the README's table.
std::span<const MetricDescription> DeclaredMetrics();

inline constexpr size_t kFinishReasons =
    5;  // stop, length, cancelled, deadline, error: as worker::FinishReason
inline constexpr std::array<const char*, kFinishReasons> kFinishReasonLabels = {
    "stop", "length", "cancelled", "deadline", "error"};
inline constexpr size_t kAllocations = 3;  // as worker::Allocation
inline constexpr std::array<const char*, kAllocations> kAllocationLabels = {"paged", "static",
                                                                            "none"};
inline constexpr std::array<const char*, 2> kAttentionLabels = {"full", "window"};
inline constexpr size_t kOffloads = 3;  // as worker::OffloadTier
inline constexpr std::array<const char*, kOffloads> kOffloadLabels = {"off", "disk", "host"};
inline constexpr size_t kOffloadMisses = 4;
inline constexpr std::array<const char*, kOffloadMisses> kOffloadMissLabels = {
    "damaged", "read_error", "write_error", "not_written"};
inline constexpr size_t kEvictionCauses = 6;  // as cache_manager::EvictionCause

// The frontend's. Thread-safe; REQUIRES: the registry outlives it.
struct FrontendMetrics {
  explicit FrontendMetrics(prometheus::Registry& registry);

  prometheus::Histogram& time_to_first_token_seconds;
  prometheus::Histogram& inter_token_latency_seconds;
  prometheus::Histogram& e2e_request_latency_seconds;
  prometheus::Histogram& request_queue_time_seconds;
  prometheus::Counter& prompt_tokens_total;
  prometheus::Counter& prompt_tokens_cached_total;
  prometheus::Counter& prompt_tokens_located_total;  // that Locate promised on the worker chosen
  prometheus::Counter& generation_tokens_total;
  std::array<prometheus::Counter*, kFinishReasons> request_success_total;
  prometheus::Gauge& requests_in_flight;
  prometheus::Counter& requests_rejected_total;  // refused at admission
  prometheus::Counter& request_replays_total;    // moved to another worker
};

// One worker's; several workers of a process differ by the label "worker". Thread-safe.
struct WorkerMetrics {
  WorkerMetrics(prometheus::Registry& registry, const std::string& worker_id);

  prometheus::Gauge& num_requests_running;
  prometheus::Gauge& num_requests_waiting;
  prometheus::Counter& prefill_tokens_total;
  prometheus::Counter& decode_tokens_total;
  prometheus::Counter& prefix_cache_queries_total;
  prometheus::Counter& prefix_cache_hits_total;
  prometheus::Counter& num_preemptions_total;
  prometheus::Counter& spec_decode_num_drafts_total;
  prometheus::Counter& spec_decode_num_draft_tokens_total;
  prometheus::Counter& spec_decode_num_accepted_tokens_total;
  prometheus::Counter& forked_requests_total;
  prometheus::Counter& copied_blocks_total;
  prometheus::Histogram& step_seconds;
  prometheus::Histogram& batch_tokens;
  std::array<prometheus::Counter*, kFinishReasons> worker_requests_total;
  // Labels: worker, allocation, attention, kv_format, offload, of the values above and the formats
  // served.
  prometheus::Family<prometheus::Counter>& cache_requests_total;
  std::array<prometheus::Counter*, kEvictionCauses> evictions_total;
  prometheus::Counter& offload_written_blocks_total;
  prometheus::Counter& offload_written_bytes_total;
  prometheus::Counter& offload_restored_blocks_total;
  prometheus::Counter& offload_restored_bytes_total;
  prometheus::Counter& offload_restores_total;
  prometheus::Counter& offload_recomputes_total;
  std::array<prometheus::Counter*, kOffloadMisses> offload_misses_total;
  prometheus::Counter& offload_wipe_errors_total;
  prometheus::Counter& session_blocks_exported_total;
  prometheus::Counter& session_blocks_imported_total;
  prometheus::Family<prometheus::Gauge>& blocks;        // labels: BlockLabels
  prometheus::Family<prometheus::Gauge>& memory_bytes;  // labels: worker, part
  prometheus::Gauge& manager_connected;                 // 1 while the stream to the manager is up

  // Labels of `blocks`; state is one of "free", "reserved", "active", "cached", "moving".
  std::map<std::string, std::string> BlockLabels(std::string_view pool, std::string_view state,
                                                 std::string_view tier) const;
  std::string worker_id;
};

// The cache manager's. Thread-safe.
struct ManagerMetrics {
  explicit ManagerMetrics(prometheus::Registry& registry);

  prometheus::Family<prometheus::Gauge>&
      mirror_confidence;  // label worker: 0 blind, 1 resync, 2 lagging, 3 exact
  prometheus::Gauge& mirror_blocks;
  prometheus::Gauge& mirror_bytes;
  prometheus::Gauge& mirror_shared_bytes;
  prometheus::Counter& mirror_events_total;
  prometheus::Counter& mirror_resyncs_total;
  prometheus::Counter& mirror_digest_rounds_total;
  std::array<prometheus::Counter*, kEvictionCauses> mirror_evictions_total;
  prometheus::Gauge& workers_connected;
  prometheus::Gauge& sessions_stored;
  prometheus::Histogram& store_write_seconds;
  prometheus::Histogram& locate_seconds;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_RUNTIME_METRICS_H_
