#include "worker/scheduler/scheduler.h"

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvist::worker {
namespace {

// Book-keeping of one pool of blocks of one token each.
class FakeLedger final : public BlockLedger {
 public:
  explicit FakeLedger(int64_t blocks) : free(blocks) {}

  bool Admit(Sequence& sequence, int64_t spare_blocks) override {
    return sequence.known_tokens + spare_blocks <= free;
  }
  int64_t Grow(Sequence& sequence, int64_t tokens) override {
    int64_t& have = held[&sequence];
    const int64_t more = std::clamp<int64_t>(sequence.stored_tokens + tokens - have, 0, free);
    have += more;
    free -= more;
    return std::min(tokens, have - sequence.stored_tokens);
  }
  void Preempt(Sequence& sequence) override {
    GiveBack(sequence);
    ++preempted[&sequence];
  }
  void GiveBack(Sequence& sequence) {
    free += held[&sequence];
    held.erase(&sequence);
    sequence.stored_tokens = 0;
  }

  int64_t free;
  std::map<Sequence*, int64_t> held;
  std::map<Sequence*, int> preempted;
};

struct Job : Sequence {
  int64_t left = 0;  // tokens to generate
};

class SchedulerTest : public testing::Test {
 protected:
  void Make(int64_t blocks, int32_t running, int64_t step_tokens) {
    ledger = std::make_unique<FakeLedger>(blocks);
    scheduler = std::make_unique<Scheduler>(
        Scheduler::Options{.max_running_sequences = running, .max_step_tokens = step_tokens},
        ledger.get());
  }
  Job* Add(int64_t prompt, int64_t generate, int32_t priority = 0) {
    jobs.push_back(std::make_unique<Job>());
    Job* job = jobs.back().get();
    job->known_tokens = prompt;
    job->left = generate;
    job->priority = priority;
    job->arrival = jobs.size();
    scheduler->Add(job);
    return job;
  }
  // Schedules, and plays the engine. Returns whether anything ran.
  bool Step() {
    scheduler->Schedule(&plan);
    free_when_planned = ledger->free;
    int64_t total = 0;
    for (const ScheduledChunk& chunk : plan.chunks) {
      Job* job = static_cast<Job*>(chunk.sequence);
      EXPECT_EQ(chunk.first_position, job->stored_tokens);
      EXPECT_GE(chunk.tokens, 1);
      EXPECT_LE(job->stored_tokens + chunk.tokens, ledger->held[job]);
      EXPECT_EQ(chunk.completes, chunk.tokens == job->MissingTokens());
      total += chunk.tokens;
      job->stored_tokens += chunk.tokens;
      if (!chunk.completes) continue;
      ++job->known_tokens;
      job->state = SequenceState::kDecode;
      if (--job->left > 0) continue;
      scheduler->Remove(job);
      ledger->GiveBack(*job);
    }
    EXPECT_EQ(total, plan.total_tokens);
    return !plan.chunks.empty();
  }
  int64_t TokensOf(const Job* job) const {
    for (const ScheduledChunk& chunk : plan.chunks) {
      if (chunk.sequence == job) return chunk.tokens;
    }
    return 0;
  }

  std::unique_ptr<FakeLedger> ledger;
  std::unique_ptr<Scheduler> scheduler;
  std::vector<std::unique_ptr<Job>> jobs;
  Plan plan;
  int64_t free_when_planned = 0;
};

TEST_F(SchedulerTest, DecodesComeFirstAndPrefillTakesTheRest) {
  Make(1000, 8, 16);
  Job* a = Add(4, 50);
  Job* b = Add(4, 50);
  Step();
  Job* longer = Add(100, 5);
  Step();
  EXPECT_EQ(TokensOf(a), 1);
  EXPECT_EQ(TokensOf(b), 1);
  EXPECT_EQ(TokensOf(longer), 14);
  EXPECT_EQ(plan.chunks.back().sequence, longer);
}

TEST_F(SchedulerTest, PromptsAreReadInOrderOfArrival) {
  Make(1000, 8, 16);
  Job* first = Add(20, 1);
  Job* second = Add(20, 1);
  Step();
  EXPECT_EQ(TokensOf(first), 16);
  EXPECT_EQ(TokensOf(second), 0);
  Step();
  EXPECT_EQ(TokensOf(first), 4);
  EXPECT_EQ(TokensOf(second), 12);
}

TEST_F(SchedulerTest, AHigherPriorityOvertakesARunningPrefill) {
  Make(1000, 8, 16);
  Job* low = Add(100, 1);
  Step();
  Job* high = Add(10, 1, 5);
  Step();
  EXPECT_EQ(TokensOf(high), 10);
  EXPECT_EQ(TokensOf(low), 6);
}

TEST_F(SchedulerTest, TheRunningLimitHolds) {
  Make(1000, 2, 64);
  for (int i = 0; i < 3; ++i) Add(4, 3);
  Step();
  EXPECT_EQ(scheduler->running().size(), 2u);
  EXPECT_EQ(scheduler->waiting().size(), 1u);
}

TEST_F(SchedulerTest, WhoDoesNotFitHoldsUpThoseBehind) {
  Make(20, 8, 64);
  Job* running = Add(10, 30);
  Step();
  Job* large = Add(15, 1);
  Job* small = Add(1, 1);
  Step();
  EXPECT_EQ(TokensOf(running), 1);
  EXPECT_EQ(large->state, SequenceState::kWaiting);
  EXPECT_EQ(small->state, SequenceState::kWaiting);
}

TEST_F(SchedulerTest, TheVictimIsOfLowestPriorityThenLatest) {
  Make(33, 8, 64);
  Job* first = Add(10, 20);
  Job* low = Add(10, 20, -1);
  Job* last = Add(10, 20);
  while (ledger->preempted.empty()) ASSERT_TRUE(Step());
  EXPECT_EQ(ledger->preempted.begin()->first, low);
  EXPECT_EQ(low->state, SequenceState::kWaiting);
  while (ledger->preempted.size() < 2) ASSERT_TRUE(Step());
  EXPECT_TRUE(ledger->preempted.contains(last));
  EXPECT_FALSE(ledger->preempted.contains(first));
}

TEST_F(SchedulerTest, AVictimThatWasPlannedLeavesThePlan) {
  Make(21, 2, 4);
  Job* low = Add(4, 30, -1);
  Step();
  Job* high = Add(13, 2, 1);
  while (ledger->preempted.empty()) ASSERT_TRUE(Step());
  // The decode had taken the last block of this step before the prefill asked.
  EXPECT_EQ(high->stored_tokens, 13);
  EXPECT_EQ(TokensOf(low), 0);
  EXPECT_EQ(TokensOf(high), 1);
  EXPECT_EQ(plan.total_tokens, 1);
  EXPECT_EQ(plan.preemptions, 1);
}

// Everything ends, within the budget and the blocks, whatever is asked (as long as each fits
// alone).
TEST_F(SchedulerTest, RandomLoadsAllEndAndDecodesNeverWaitForPrompts) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    jobs.clear();
    const int64_t blocks = 40 + static_cast<int64_t>(random() % 60);
    const int32_t running = static_cast<int32_t>(1 + random() % 8);
    const int64_t budget = running + static_cast<int64_t>(random() % 30);
    Make(blocks, running, budget);
    int added = 0;
    for (int step = 0; added < 40 || !scheduler->running().empty() || !scheduler->waiting().empty();
         ++step) {
      ASSERT_LT(step, 100000);
      while (added < 40 && (added == 0 || random() % 3 == 0)) {
        Add(1 + static_cast<int64_t>(random() % 20), 1 + static_cast<int64_t>(random() % 20),
            static_cast<int32_t>(random() % 3));
        ++added;
      }
      std::vector<Sequence*> decoding;
      for (Sequence* s : scheduler->running()) {
        if (s->state == SequenceState::kDecode) decoding.push_back(s);
      }
      const bool busy = !scheduler->running().empty() || !scheduler->waiting().empty();
      ASSERT_EQ(Step(), busy);
      ASSERT_LE(plan.total_tokens, budget);
      ASSERT_LE(static_cast<int64_t>(scheduler->running().size()), running);
      ASSERT_GE(ledger->free, 0);
      // The best decode always runs; with blocks to spare all of them do.
      if (!decoding.empty() && plan.preemptions == 0) {
        ASSERT_EQ(TokensOf(static_cast<Job*>(decoding[0])), 1);
      }
      if (plan.preemptions == 0 && free_when_planned > 0) {
        for (Sequence* s : decoding) ASSERT_EQ(TokensOf(static_cast<Job*>(s)), 1);
      }
    }
    EXPECT_EQ(ledger->free, blocks);
  }
}

}  // namespace
}  // namespace kvist::worker
