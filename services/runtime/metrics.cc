#include "services/runtime/metrics.h"

#include <utility>

#include "common/base/check.h"

namespace kvist::services {
namespace {

using Labels = std::map<std::string, std::string>;
using Buckets = prometheus::Histogram::BucketBoundaries;
using enum MetricRole;
using enum MetricType;

constexpr std::array<const char*, kEvictionCauses> kCauseLabels = {
    "capacity", "quota", "retention_ended", "closed", "drained", "command"};

constexpr MetricDescription kAll[] = {
    {kFrontend, kHistogram, "kvist_time_to_first_token_seconds", "seconds", "",
     "From admission to the first token sent to the client."},
    {kFrontend, kHistogram, "kvist_inter_token_latency_seconds", "seconds", "",
     "Between two tokens of one request."},
    {kFrontend, kHistogram, "kvist_e2e_request_latency_seconds", "seconds", "",
     "From admission to the last message."},
    {kFrontend, kHistogram, "kvist_request_queue_time_seconds", "seconds", "",
     "Waiting in the worker's queue for a first schedule."},
    {kFrontend, kCounter, "kvist_prompt_tokens_total", "tokens", "", "Prompt tokens of requests."},
    {kFrontend, kCounter, "kvist_prompt_tokens_cached_total", "tokens", "",
     "Prompt tokens that the worker found in its cache."},
    {kFrontend, kCounter, "kvist_prompt_tokens_located_total", "tokens", "",
     "Prompt tokens that the mirror promised in the pools of the worker chosen."},
    {kFrontend, kCounter, "kvist_generation_tokens_total", "tokens", "",
     "Tokens generated and sent to clients."},
    {kFrontend, kCounter, "kvist_request_success_total", "requests", "finished_reason",
     "Requests ended, by reason."},
    {kFrontend, kGauge, "kvist_requests_in_flight", "requests", "",
     "Requests admitted and not ended."},
    {kFrontend, kCounter, "kvist_requests_rejected_total", "requests", "",
     "Requests refused at admission."},
    {kFrontend, kCounter, "kvist_request_replays_total", "replays", "",
     "Moves of a running request to another worker."},
    {kWorker, kGauge, "kvist_num_requests_running", "requests", "worker",
     "Sequences that take part in steps."},
    {kWorker, kGauge, "kvist_num_requests_waiting", "requests", "worker",
     "Requests that wait for a schedule."},
    {kWorker, kCounter, "kvist_prefill_tokens_total", "tokens", "worker",
     "Prompt tokens computed."},
    {kWorker, kCounter, "kvist_decode_tokens_total", "tokens", "worker",
     "Tokens computed after a prompt, without drafts that were rejected."},
    {kWorker, kCounter, "kvist_prefix_cache_queries_total", "tokens", "worker",
     "Prompt tokens looked up in the prefix cache."},
    {kWorker, kCounter, "kvist_prefix_cache_hits_total", "tokens", "worker",
     "Prompt tokens found in the prefix cache."},
    {kWorker, kCounter, "kvist_num_preemptions_total", "preemptions", "worker",
     "Running sequences put back because blocks ran out."},
    {kWorker, kCounter, "kvist_spec_decode_num_drafts_total", "drafts", "worker",
     "Steps of a sequence that had tokens guessed ahead."},
    {kWorker, kCounter, "kvist_spec_decode_num_draft_tokens_total", "tokens", "worker",
     "Tokens guessed ahead and computed."},
    {kWorker, kCounter, "kvist_spec_decode_num_accepted_tokens_total", "tokens", "worker",
     "Tokens guessed ahead that the sampler chose as well."},
    {kWorker, kCounter, "kvist_forked_requests_total", "requests", "worker",
     "Requests that began with the blocks of another sample of their prompt."},
    {kWorker, kCounter, "kvist_copied_blocks_total", "blocks", "worker",
     "Blocks copied before a write: shared ones, and partly matching ones."},
    {kWorker, kHistogram, "kvist_step_seconds", "seconds", "worker", "One step of the engine."},
    {kWorker, kHistogram, "kvist_batch_tokens", "tokens", "worker", "Tokens in one step."},
    {kWorker, kCounter, "kvist_worker_requests_total", "requests", "worker,finished_reason",
     "Requests ended on the worker, by reason."},
    {kWorker, kCounter, "kvist_cache_requests_total", "requests",
     "worker,allocation,attention,kv_format,offload",
     "Requests that the worker took, by the cache that they have."},
    {kWorker, kCounter, "kvist_evictions_total", "blocks", "worker,cause",
     "Blocks that left a tier, by cause."},
    {kWorker, kCounter, "kvist_offload_written_blocks_total", "blocks", "worker",
     "Blocks written to the disk tier."},
    {kWorker, kCounter, "kvist_offload_written_bytes_total", "bytes", "worker",
     "Bytes written to the disk tier."},
    {kWorker, kCounter, "kvist_offload_restored_blocks_total", "blocks", "worker",
     "Blocks read back from the disk tier."},
    {kWorker, kCounter, "kvist_offload_restored_bytes_total", "bytes", "worker",
     "Bytes read back from the disk tier."},
    {kWorker, kCounter, "kvist_offload_restores_total", "sequences", "worker",
     "Admissions that waited for blocks from the disk tier."},
    {kWorker, kCounter, "kvist_offload_recomputes_total", "sequences", "worker",
     "Admissions that computed what the disk tier has: measured to be faster."},
    {kWorker, kCounter, "kvist_offload_misses_total", "blocks", "worker,reason",
     "Blocks that the disk tier lost or never got, by reason: damaged, read_error, write_error, "
     "not_written (evicted before, or too many waited)."},
    {kWorker, kCounter, "kvist_offload_wipe_errors_total", "blocks", "worker",
     "Blocks of deleted sessions that the disk did not overwrite."},
    {kWorker, kCounter, "kvist_session_blocks_exported_total", "blocks", "worker",
     "Blocks read for session files."},
    {kWorker, kCounter, "kvist_session_blocks_imported_total", "blocks", "worker",
     "Blocks taken from session files."},
    {kWorker, kGauge, "kvist_blocks", "blocks", "worker,pool,state,tier",
     "Blocks of each pool by state and tier."},
    {kWorker, kGauge, "kvist_memory_bytes", "bytes", "worker,part",
     "Memory taken at the start, by what it is for."},
    {kWorker, kGauge, "kvist_manager_connected", "streams", "worker",
     "1 while the stream to the cache manager is up."},
    {kCacheManager, kGauge, "kvist_mirror_confidence", "level", "worker",
     "Trust in the mirror of a worker: 0 blind, 1 resync, 2 lagging, 3 exact."},
    {kCacheManager, kGauge, "kvist_mirror_blocks", "blocks", "", "Named blocks in the mirror."},
    {kCacheManager, kGauge, "kvist_mirror_bytes", "bytes", "", "Bytes of blocks in the mirror."},
    {kCacheManager, kGauge, "kvist_mirror_shared_bytes", "bytes", "",
     "Bytes of blocks that more than one session holds."},
    {kCacheManager, kCounter, "kvist_mirror_events_total", "events", "",
     "Events applied to the mirror."},
    {kCacheManager, kCounter, "kvist_mirror_resyncs_total", "resyncs", "",
     "Snapshots asked for after a gap, a mismatch or a start."},
    {kCacheManager, kCounter, "kvist_mirror_digest_rounds_total", "rounds", "",
     "Digests asked for because a frontend found less cached than promised."},
    {kCacheManager, kCounter, "kvist_mirror_evictions_total", "blocks", "cause",
     "Evictions that workers told, by cause."},
    {kCacheManager, kGauge, "kvist_workers_connected", "workers", "",
     "Workers with a stream to this manager."},
    {kCacheManager, kGauge, "kvist_sessions_stored", "sessions", "", "Sessions in the store."},
    {kCacheManager, kHistogram, "kvist_store_write_seconds", "seconds", "",
     "One write to the session store, its sync to disk included."},
    {kCacheManager, kHistogram, "kvist_locate_seconds", "seconds", "",
     "One lookup over the mirrors of all workers."},
};

constexpr const MetricDescription& Row(std::string_view name) {
  for (const MetricDescription& row : kAll) {
    if (row.name == name) return row;
  }
  KVIST_CHECK(false, "no such metric");  // in a constant expression: does not compile
  return kAll[0];
}

prometheus::Family<prometheus::Gauge>& GaugeFamily(prometheus::Registry& registry,
                                                   const MetricDescription& row) {
  return prometheus::BuildGauge().Name(row.name).Help(row.help).Register(registry);
}

prometheus::Gauge& Gauge(prometheus::Registry& registry, const MetricDescription& row,
                         const Labels& labels = {}) {
  return GaugeFamily(registry, row).Add(labels);
}

prometheus::Family<prometheus::Counter>& CounterFamily(prometheus::Registry& registry,
                                                       const MetricDescription& row) {
  return prometheus::BuildCounter().Name(row.name).Help(row.help).Register(registry);
}

prometheus::Counter& Counter(prometheus::Registry& registry, const MetricDescription& row,
                             const Labels& labels = {}) {
  return CounterFamily(registry, row).Add(labels);
}

prometheus::Histogram& Histogram(prometheus::Registry& registry, const MetricDescription& row,
                                 const Buckets& buckets, const Labels& labels = {}) {
  return prometheus::BuildHistogram().Name(row.name).Help(row.help).Register(registry).Add(labels,
                                                                                           buckets);
}

// One counter for each value of `label`, so that a scrape shows zeros before the first event.
template <size_t N>
std::array<prometheus::Counter*, N> Counters(prometheus::Registry& registry,
                                             const MetricDescription& row, const char* label,
                                             const std::array<const char*, N>& values,
                                             const Labels& labels = {}) {
  std::array<prometheus::Counter*, N> counters;
  for (size_t i = 0; i < N; ++i) {
    Labels all = labels;
    all[label] = values[i];
    counters[i] = &Counter(registry, row, all);
  }
  return counters;
}

const Buckets kShortSeconds = {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
                               0.05,   0.1,     0.25,   0.5,   1,      2.5,   5};
const Buckets kLongSeconds = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                              1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640};
const Buckets kTokens = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048};

}  // namespace

std::span<const MetricDescription> DeclaredMetrics() { return kAll; }

// The compiler checks each name against the table.
#define KVIST_ROW(name)                                          \
  ([]() -> const MetricDescription& {                            \
    constexpr const MetricDescription& row = Row("kvist_" name); \
    return row;                                                  \
  }())

FrontendMetrics::FrontendMetrics(prometheus::Registry& registry)
    : time_to_first_token_seconds(
          Histogram(registry, KVIST_ROW("time_to_first_token_seconds"), kLongSeconds)),
      inter_token_latency_seconds(
          Histogram(registry, KVIST_ROW("inter_token_latency_seconds"), kShortSeconds)),
      e2e_request_latency_seconds(
          Histogram(registry, KVIST_ROW("e2e_request_latency_seconds"), kLongSeconds)),
      request_queue_time_seconds(
          Histogram(registry, KVIST_ROW("request_queue_time_seconds"), kLongSeconds)),
      prompt_tokens_total(Counter(registry, KVIST_ROW("prompt_tokens_total"))),
      prompt_tokens_cached_total(Counter(registry, KVIST_ROW("prompt_tokens_cached_total"))),
      prompt_tokens_located_total(Counter(registry, KVIST_ROW("prompt_tokens_located_total"))),
      generation_tokens_total(Counter(registry, KVIST_ROW("generation_tokens_total"))),
      request_success_total(Counters(registry, KVIST_ROW("request_success_total"),
                                     "finished_reason", kFinishReasonLabels)),
      requests_in_flight(Gauge(registry, KVIST_ROW("requests_in_flight"))),
      requests_rejected_total(Counter(registry, KVIST_ROW("requests_rejected_total"))),
      request_replays_total(Counter(registry, KVIST_ROW("request_replays_total"))) {}

WorkerMetrics::WorkerMetrics(prometheus::Registry& registry, const std::string& id)
    : num_requests_running(Gauge(registry, KVIST_ROW("num_requests_running"), {{"worker", id}})),
      num_requests_waiting(Gauge(registry, KVIST_ROW("num_requests_waiting"), {{"worker", id}})),
      prefill_tokens_total(Counter(registry, KVIST_ROW("prefill_tokens_total"), {{"worker", id}})),
      decode_tokens_total(Counter(registry, KVIST_ROW("decode_tokens_total"), {{"worker", id}})),
      prefix_cache_queries_total(
          Counter(registry, KVIST_ROW("prefix_cache_queries_total"), {{"worker", id}})),
      prefix_cache_hits_total(
          Counter(registry, KVIST_ROW("prefix_cache_hits_total"), {{"worker", id}})),
      num_preemptions_total(
          Counter(registry, KVIST_ROW("num_preemptions_total"), {{"worker", id}})),
      spec_decode_num_drafts_total(
          Counter(registry, KVIST_ROW("spec_decode_num_drafts_total"), {{"worker", id}})),
      spec_decode_num_draft_tokens_total(
          Counter(registry, KVIST_ROW("spec_decode_num_draft_tokens_total"), {{"worker", id}})),
      spec_decode_num_accepted_tokens_total(
          Counter(registry, KVIST_ROW("spec_decode_num_accepted_tokens_total"), {{"worker", id}})),
      forked_requests_total(
          Counter(registry, KVIST_ROW("forked_requests_total"), {{"worker", id}})),
      copied_blocks_total(Counter(registry, KVIST_ROW("copied_blocks_total"), {{"worker", id}})),
      step_seconds(Histogram(registry, KVIST_ROW("step_seconds"), kShortSeconds, {{"worker", id}})),
      batch_tokens(Histogram(registry, KVIST_ROW("batch_tokens"), kTokens, {{"worker", id}})),
      worker_requests_total(Counters(registry, KVIST_ROW("worker_requests_total"),
                                     "finished_reason", kFinishReasonLabels, {{"worker", id}})),
      cache_requests_total(CounterFamily(registry, KVIST_ROW("cache_requests_total"))),
      evictions_total(Counters(registry, KVIST_ROW("evictions_total"), "cause", kCauseLabels,
                               {{"worker", id}})),
      offload_written_blocks_total(
          Counter(registry, KVIST_ROW("offload_written_blocks_total"), {{"worker", id}})),
      offload_written_bytes_total(
          Counter(registry, KVIST_ROW("offload_written_bytes_total"), {{"worker", id}})),
      offload_restored_blocks_total(
          Counter(registry, KVIST_ROW("offload_restored_blocks_total"), {{"worker", id}})),
      offload_restored_bytes_total(
          Counter(registry, KVIST_ROW("offload_restored_bytes_total"), {{"worker", id}})),
      offload_restores_total(
          Counter(registry, KVIST_ROW("offload_restores_total"), {{"worker", id}})),
      offload_recomputes_total(
          Counter(registry, KVIST_ROW("offload_recomputes_total"), {{"worker", id}})),
      offload_misses_total(Counters(registry, KVIST_ROW("offload_misses_total"), "reason",
                                    kOffloadMissLabels, {{"worker", id}})),
      offload_wipe_errors_total(
          Counter(registry, KVIST_ROW("offload_wipe_errors_total"), {{"worker", id}})),
      session_blocks_exported_total(
          Counter(registry, KVIST_ROW("session_blocks_exported_total"), {{"worker", id}})),
      session_blocks_imported_total(
          Counter(registry, KVIST_ROW("session_blocks_imported_total"), {{"worker", id}})),
      blocks(GaugeFamily(registry, KVIST_ROW("blocks"))),
      memory_bytes(GaugeFamily(registry, KVIST_ROW("memory_bytes"))),
      manager_connected(Gauge(registry, KVIST_ROW("manager_connected"), {{"worker", id}})),
      worker_id(id) {}

std::map<std::string, std::string> WorkerMetrics::BlockLabels(std::string_view pool,
                                                              std::string_view state,
                                                              std::string_view tier) const {
  return {{"worker", worker_id},
          {"pool", std::string(pool)},
          {"state", std::string(state)},
          {"tier", std::string(tier)}};
}

ManagerMetrics::ManagerMetrics(prometheus::Registry& registry)
    : mirror_confidence(GaugeFamily(registry, KVIST_ROW("mirror_confidence"))),
      mirror_blocks(Gauge(registry, KVIST_ROW("mirror_blocks"))),
      mirror_bytes(Gauge(registry, KVIST_ROW("mirror_bytes"))),
      mirror_shared_bytes(Gauge(registry, KVIST_ROW("mirror_shared_bytes"))),
      mirror_events_total(Counter(registry, KVIST_ROW("mirror_events_total"))),
      mirror_resyncs_total(Counter(registry, KVIST_ROW("mirror_resyncs_total"))),
      mirror_digest_rounds_total(Counter(registry, KVIST_ROW("mirror_digest_rounds_total"))),
      mirror_evictions_total(
          Counters(registry, KVIST_ROW("mirror_evictions_total"), "cause", kCauseLabels)),
      workers_connected(Gauge(registry, KVIST_ROW("workers_connected"))),
      sessions_stored(Gauge(registry, KVIST_ROW("sessions_stored"))),
      store_write_seconds(Histogram(registry, KVIST_ROW("store_write_seconds"), kShortSeconds)),
      locate_seconds(Histogram(registry, KVIST_ROW("locate_seconds"), kShortSeconds)) {}

#undef KVIST_ROW

}  // namespace kvist::services
