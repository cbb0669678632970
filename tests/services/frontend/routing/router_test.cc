#include "services/frontend/routing/router.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace kvist::services {
namespace {

constexpr int64_t kPrompt = 1000;

struct Row {
  std::string name;
  std::vector<WorkerView> workers;
  std::optional<size_t> wanted;
};

TEST(RouterTest, PicksByTheTable) {
  const std::vector<Row> rows = {
      {"no worker at all", {}, std::nullopt},
      {"none usable", {{.usable = false}, {.usable = false}}, std::nullopt},
      {"a tie goes to the first", {{}, {}, {}}, 0},
      {"an unusable worker is passed over", {{.usable = false}, {}}, 1},
      {"the longest match wins among idle ones",
       {{.matched_device_tokens = 100}, {.matched_device_tokens = 900}, {}},
       1},
      {"host memory counts three quarters",
       {{.matched_device_tokens = 700}, {.matched_host_tokens = 900}},
       0},
      {"disk counts a quarter", {{.matched_device_tokens = 300}, {.matched_disk_tokens = 1000}}, 0},
      {"a long queue outweighs a short match",
       {{.matched_device_tokens = 200, .reported_prefill_tokens = 2000}, {}},
       1},
      {"a long match outweighs a short queue",
       {{.matched_device_tokens = 900, .reported_prefill_tokens = 100}, {}},
       0},
      {"running sequences are load", {{.reported_sequences = 10}, {.reported_sequences = 9}}, 1},
      {"a load of 5000 ms still counts",
       {{.reported_prefill_tokens = 500, .load_age_ms = 5000}, {}},
       1},
      {"a load of 5001 ms does not",
       {{.reported_prefill_tokens = 500, .load_age_ms = 5001}, {}},
       0},
      {"own requests count where the load is stale",
       {{.load_age_ms = 9000, .own_prefill_tokens = 500}, {.reported_prefill_tokens = 400}},
       1},
      {"own requests younger than the report count beside it",
       {{.reported_prefill_tokens = 100, .own_recent_prefill_tokens = 400},
        {.reported_prefill_tokens = 450}},
       1},
      {"a suspect worker is the last choice",
       {{.suspect = true, .matched_device_tokens = 1000}, {.reported_prefill_tokens = 5000}},
       1},
      {"a suspect worker is better than none", {{.usable = false}, {.suspect = true}}, 1},
      {"equal costs go to the longer match",
       {{.matched_device_tokens = 750}, {.matched_host_tokens = 1000}},
       1},
  };
  RoutingOptions options;
  options.credit_half_excess_tokens = 1'000'000'000;  // decay has a test of its own
  for (const Row& row : rows) {
    EXPECT_EQ(PickWorker(kPrompt, row.workers, options), row.wanted) << row.name;
  }
}

TEST(RouterTest, WorkerTooFarAheadInPrefillTakesNoMore) {
  RoutingOptions options;
  options.max_prefill_lead_tokens = 1000;
  options.credit_half_excess_tokens = 1'000'000'000;
  // A match of everything would win by cost alone.
  WorkerView busy{.matched_device_tokens = 50'000, .reported_prefill_tokens = 1000};
  const WorkerView idle;
  EXPECT_EQ(PickWorker(50'000, std::vector<WorkerView>{idle, busy}, options), 1u);
  busy.reported_prefill_tokens = 1001;
  EXPECT_EQ(PickWorker(50'000, std::vector<WorkerView>{idle, busy}, options), 0u);
}

TEST(RouterTest, CreditHalvesAtTheNamedExcess) {
  const RoutingOptions options;
  const WorkerView worker{.matched_device_tokens = 800};
  EXPECT_DOUBLE_EQ(RoutingCost(kPrompt, worker, 0, options), 200.0);
  EXPECT_DOUBLE_EQ(RoutingCost(kPrompt, worker, options.credit_half_excess_tokens, options), 600.0);
}

TEST(RouterTest, CostOfPrefillIsNeverNegative) {
  const WorkerView worker{.matched_device_tokens = 5000, .reported_sequences = 2};
  EXPECT_DOUBLE_EQ(RoutingCost(kPrompt, worker, 0, RoutingOptions()), 32.0);
}

// A burst of requests with one common prefix must not all go to the worker that holds it.
TEST(RouterTest, BurstWithOnePrefixSpreadsOverWorkers) {
  const RoutingOptions options;
  std::vector<WorkerView> workers(4);
  workers[2].matched_device_tokens = 3000;
  std::vector<int> taken(4);
  for (int i = 0; i < 64; ++i) {
    const size_t picked = PickWorker(4000, workers, options).value();
    ++taken[picked];
    workers[picked].own_recent_prefill_tokens += 4000 - workers[picked].matched_device_tokens;
    ++workers[picked].own_recent_sequences;
  }
  for (const int count : taken) EXPECT_GE(count, 8);
}

TEST(RouterTest, PickIsDeterministicAndNeverAnUnusableWorker) {
  std::mt19937 random(7);
  const RoutingOptions options;
  for (int round = 0; round < 5000; ++round) {
    std::vector<WorkerView> workers(random() % 9);
    bool any = false;
    for (WorkerView& worker : workers) {
      worker.usable = random() % 3 != 0;
      worker.suspect = random() % 4 == 0;
      worker.matched_device_tokens = random() % 4000;
      worker.reported_prefill_tokens = random() % 20000;
      worker.reported_sequences = random() % 64;
      worker.load_age_ms = random() % 10000;
      worker.own_prefill_tokens = random() % 5000;
      any |= worker.usable;
    }
    const auto picked = PickWorker(kPrompt, workers, options);
    ASSERT_EQ(picked.has_value(), any);
    if (!any) continue;
    EXPECT_TRUE(workers[*picked].usable);
    EXPECT_EQ(PickWorker(kPrompt, workers, options), picked);
  }
}

}  // namespace
}  // namespace kvist::services
