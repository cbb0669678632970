// A scheduler over the books of a pool without blocks, and a fixture that plays the engine.
#ifndef KVIST_TESTS_WORKER_SCHEDULER_FAKE_LEDGER_H_
#define KVIST_TESTS_WORKER_SCHEDULER_FAKE_LEDGER_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "gtest/gtest.h"
#include "worker/scheduler/scheduler.h"

namespace kvist::worker {

// A sequence and what a test knows of it.
struct Job : Sequence {
  int64_t left = 0;   // tokens to generate
  int64_t named = 0;  // stored tokens that would be found again
  int64_t arrival_step = 0;

  int64_t AllTokens() const { return known_tokens + left; }
};

// Book-keeping of one pool of blocks of one token each. Single-threaded.
class FakeLedger final : public BlockLedger {
 public:
  explicit FakeLedger(int64_t blocks) : free(blocks) {}

  bool Admit(Sequence& sequence, int64_t spare_blocks) override {
    EXPECT_FALSE(sequence.restoring);
    if (&sequence == to_restore) {
      to_restore = nullptr;
      sequence.restoring = true;
      return false;
    }
    if (sequence.preemptible) return sequence.known_tokens + spare_blocks <= free;
    const int64_t all = static_cast<Job&>(sequence).AllTokens() - 1;
    if (all + spare_blocks > free) return false;
    held[&sequence] = all;
    free -= all;
    return true;
  }
  int64_t Grow(Sequence& sequence, int64_t tokens) override {
    int64_t& have = held[&sequence];
    const int64_t more = std::clamp<int64_t>(sequence.stored_tokens + tokens - have, 0, free);
    have += more;
    free -= more;
    return std::min(tokens, have - sequence.stored_tokens);
  }
  std::optional<Loss> LossOf(const Sequence& victim, const Sequence&) const override {
    const auto found = held.find(const_cast<Sequence*>(&victim));
    if (found == held.end() || found->second == 0) return std::nullopt;
    return Loss{.helps = &victim != of_no_help,
                .tokens = victim.stored_tokens - static_cast<const Job&>(victim).named};
  }
  void Preempt(Sequence& sequence) override {
    EXPECT_TRUE(sequence.preemptible);
    GiveBack(sequence);
    ++preempted[&sequence];
  }
  void GiveBack(Sequence& sequence) {
    free += held[&sequence];
    held.erase(&sequence);
    sequence.stored_tokens = 0;
  }

  int64_t free;
  const Sequence* of_no_help = nullptr;  // others hold all that it has
  Sequence* to_restore = nullptr;        // its next admission waits for blocks
  std::map<Sequence*, int64_t> held;
  std::map<Sequence*, int> preempted;
};

// Plays the engine of a scheduler. Single-threaded.
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
    job->arrival_step = steps;
    scheduler->Add(job);
    return job;
  }
  Job* AddStatic(int64_t prompt, int64_t generate, int32_t priority = 0) {
    Job* job = Add(prompt, generate, priority);
    job->preemptible = false;
    return job;
  }
  // Schedules, and plays the engine with the plan. Returns whether anything ran.
  bool Step() {
    scheduler->Schedule(&plan);
    return Play();
  }
  bool Play() {
    ++steps;
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
  int64_t steps = 0;
};

}  // namespace kvist::worker

#endif  // KVIST_TESTS_WORKER_SCHEDULER_FAKE_LEDGER_H_
