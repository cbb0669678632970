#include "worker/scheduler/scheduler.h"

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/scheduler/fake_ledger.h"

namespace kvist::worker {
namespace {

TEST_F(SchedulerTest, WhoWaitsForItsOwnBlocksHoldsNobodyUp) {
  Make(100, 4, 64);
  Job* first = Add(20, 3);
  Job* second = Add(20, 3);
  ledger->to_restore = first;
  EXPECT_TRUE(Step());
  EXPECT_EQ(first->state, SequenceState::kWaiting);
  EXPECT_EQ(second->state, SequenceState::kDecode);
  EXPECT_TRUE(Step());
  EXPECT_EQ(first->state, SequenceState::kWaiting);
  first->restoring = false;
  EXPECT_TRUE(Step());
  EXPECT_EQ(first->state, SequenceState::kDecode);
  // It kept its place: before the second.
  EXPECT_EQ(scheduler->running().front(), first);
}

TEST_F(SchedulerTest, ASequenceThatJoinsDecodesInTheNextStepBesideTheOneItCameWith) {
  Make(1000, 3, 16);
  Job* leader = Add(10, 5);
  Step();
  Job* later = Add(4, 5);
  Job fork;
  fork.known_tokens = 11;
  fork.stored_tokens = 10;
  fork.left = 2;
  fork.arrival = 99;
  fork.rank = leader->rank;
  fork.state = SequenceState::kDecode;
  ledger->held[&fork] = 10;
  ASSERT_TRUE(scheduler->HasPlaceFor(fork));  // the one that waits came after the leader
  scheduler->Join(&fork);
  EXPECT_EQ(scheduler->running(), (std::vector<Sequence*>{leader, &fork}));
  Step();
  EXPECT_EQ(TokensOf(&fork), 1);
  EXPECT_EQ(TokensOf(later), 4);
  EXPECT_FALSE(scheduler->HasPlaceFor(fork));  // three run
  scheduler->Remove(&fork);
}

TEST_F(SchedulerTest, NobodyJoinsPastOneThatWaitsAndIsServedBefore) {
  Make(14, 4, 16);
  Job* leader = Add(10, 3);
  Job* waits = Add(10, 2);
  Step();
  ASSERT_EQ(waits->state, SequenceState::kWaiting);
  Sequence fork;
  fork.arrival = 99;
  fork.rank = leader->rank;  // that of `waits` too, which came earlier
  EXPECT_FALSE(scheduler->HasPlaceFor(fork));
  scheduler->AddInRank(&fork);
  EXPECT_EQ(scheduler->waiting(), (std::vector<Sequence*>{waits, &fork}));
  scheduler->Remove(&fork);
}

TEST_F(SchedulerTest, OneMayJoinPastOneThatWaitsForItsOwnBlocks) {
  Make(100, 4, 64);
  Job* leader = Add(10, 3);
  Job* restored = Add(10, 2);
  ledger->to_restore = restored;
  Step();
  ASSERT_TRUE(restored->restoring);
  Sequence fork;
  fork.arrival = 99;
  fork.rank = leader->rank;
  EXPECT_TRUE(scheduler->HasPlaceFor(fork));
  Job* waits = Add(10, 2);
  waits->rank = leader->rank;
  EXPECT_FALSE(scheduler->HasPlaceFor(fork));  // behind the one that is passed over
  restored->restoring = false;
  EXPECT_FALSE(scheduler->HasPlaceFor(fork));
}

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

TEST_F(SchedulerTest, AmongEqualsTheVictimLosesLeast) {
  Make(33, 8, 64);
  Job* first = Add(10, 20);
  Job* cheap = Add(10, 20);
  Job* dear = Add(10, 20);
  while (ledger->preempted.empty()) {
    cheap->named = 5;
    dear->named = 4;
    ASSERT_TRUE(Step());
  }
  EXPECT_TRUE(ledger->preempted.contains(cheap));
  EXPECT_EQ(dear->state, SequenceState::kDecode);
  EXPECT_FALSE(ledger->preempted.contains(first));
}

TEST_F(SchedulerTest, WhoseBlocksAreOfNoHelpIsTakenOnlyWhereNobodyElseIs) {
  for (const bool alone : {false, true}) {
    Make(alone ? 22 : 33, 8, 64);
    Add(10, 20, 2);
    Job* helps = alone ? nullptr : Add(10, 20, 1);
    Job* shares = Add(10, 20);
    ledger->of_no_help = shares;
    while (ledger->preempted.empty()) ASSERT_TRUE(Step());
    EXPECT_TRUE(ledger->preempted.contains(alone ? shares : helps));
    EXPECT_EQ(ledger->preempted.size(), 1u);
  }
}

TEST_F(SchedulerTest, NobodyTakesWhatWasPromised) {
  Make(30, 8, 64);
  Job* first = Add(10, 15);
  Job* promised = AddStatic(5, 10, -1);
  for (int step = 0; step < 10; ++step) {
    ASSERT_TRUE(Step());
    EXPECT_GE(ledger->free + ledger->held[first], 16);
  }
  EXPECT_EQ(promised->left, 0);  // it moved in every step
  EXPECT_EQ(first->left, 8);     // 16 blocks were not enough to go on
  while (first->left > 0) ASSERT_TRUE(Step());
  EXPECT_TRUE(ledger->preempted.empty());
}

TEST_F(SchedulerTest, APromiseThatIsNotThereYetIsTakenFromThoseBefore) {
  Make(30, 8, 64);
  Job* first = Add(6, 20);
  Job* promised = AddStatic(4, 6);
  Job* behind = Add(6, 20);
  Step();
  ASSERT_EQ(promised->state, SequenceState::kDecode);
  // Somebody else still uses the blocks that it gave up.
  ledger->held[promised] = 4;
  ledger->held[first] = 10;
  ledger->free = 0;
  Step();
  EXPECT_EQ(TokensOf(promised), 1);
  EXPECT_TRUE(ledger->preempted.contains(behind));
  EXPECT_FALSE(ledger->preempted.contains(first));
  ledger->held[promised] = 5;
  ledger->held[first] += ledger->free;
  ledger->free = 0;
  Step();
  EXPECT_EQ(TokensOf(promised), 1);
  EXPECT_TRUE(ledger->preempted.contains(first));
}

TEST_F(SchedulerTest, AWaitingPromiseThatDoesNotFitHoldsUpThoseBehind) {
  Make(30, 8, 64);
  Job* running = Add(10, 12);
  Step();
  Job* promised = AddStatic(10, 10);
  Job* small = Add(1, 1);
  for (int step = 0; step < 11; ++step) {
    EXPECT_EQ(promised->state, SequenceState::kWaiting);
    EXPECT_EQ(small->state, SequenceState::kWaiting);
    ASSERT_TRUE(Step());
  }
  EXPECT_EQ(running->left, 0);
  Step();
  EXPECT_EQ(TokensOf(promised), 10);
}

TEST_F(SchedulerTest, AStepWithADecodeIsCutToWhatTheCallerAllowsAndPromptsGoOn) {
  Make(1000, 4, 64);
  Job* decode = Add(30, 40);
  scheduler->Schedule(&plan, 20);
  EXPECT_EQ(plan.total_tokens, 30);  // nobody decodes
  Play();
  Job* prompt = Add(500, 1);
  for (int step = 0; prompt->left > 0; ++step) {
    const int64_t most = step % 2 == 0 ? 40 : 3;
    scheduler->Schedule(&plan, most);
    EXPECT_EQ(TokensOf(decode), 1);
    EXPECT_EQ(TokensOf(prompt),
              std::min(prompt->MissingTokens(), std::max(most - 1, kLeastPromptTokens)));
    Play();
  }
}

TEST_F(SchedulerTest, ADecodeWaitsForAPromptNoLongerThanAStepOfTheBudget) {
  Make(100000, 4, 40);
  Job* decoding = Add(8, 100);
  Step();
  for (int i = 0; i < 3; ++i) Add(1000, 1, i);  // some of higher priority
  for (int step = 0; step < 50; ++step) {
    Step();
    EXPECT_EQ(TokensOf(decoding), 1);
    EXPECT_EQ(plan.total_tokens, 40);
  }
}

TEST_F(SchedulerTest, AStreamOfHigherPriorityHoldsUpAnEarlierRequestOnlySoLong) {
  Make(1000, 1, 16);
  Add(4, 4, 3);
  Job* low = Add(4, 4, -1);
  int64_t taken_over = 0;
  while (low->left > 0) {
    ASSERT_LT(steps, 4 * kStepsPerPriority + 100);
    // One more than can be served.
    if (steps % 4 == 0) {
      Add(4, 4, 3);
      ++taken_over;
    }
    Step();
  }
  EXPECT_GE(steps, 4 * kStepsPerPriority);
  EXPECT_GE(taken_over, kStepsPerPriority);
}

// The bound of scheduler.h, for everybody, under a load that never lets up.
TEST_F(SchedulerTest, NobodyWaitsLongerThanTheHeaderSays) {
  std::mt19937 random(11);
  for (int round = 0; round < 30; ++round) {
    jobs.clear();
    steps = 0;
    Make(60, static_cast<int32_t>(1 + random() % 6), 8 + static_cast<int64_t>(random() % 20));
    std::map<Job*, int64_t> tokens, ended;
    while (steps < 1500) {
      // Mostly of high priority, and more than is served.
      if (jobs.size() - ended.size() < 12) {
        const int32_t priority = random() % 4 == 0 ? static_cast<int32_t>(random() % 4) : 4;
        const int64_t prompt = 1 + static_cast<int64_t>(random() % 20);
        const int64_t generate = 1 + static_cast<int64_t>(random() % 20);
        Job* job = random() % 5 == 0 ? AddStatic(prompt, generate, priority)
                                     : Add(prompt, generate, priority);
        tokens[job] = job->AllTokens();
      }
      ASSERT_TRUE(Step());
      for (const auto& job : jobs) {
        if (job->left == 0) ended.try_emplace(job.get(), steps);
      }
    }
    for (const auto& [job, all] : tokens) {
      int64_t bound = (4 - job->priority) * kStepsPerPriority + all;
      const auto found = ended.find(job);
      const int64_t end = found == ended.end() ? steps : found->second;
      for (const auto& [other, others] : tokens) {
        const auto gone = ended.find(other);
        const bool alive =
            other->arrival_step < end && (gone == ended.end() || gone->second > job->arrival_step);
        if (alive && (ServedBefore(*other, *job) || !other->preemptible)) bound += others;
      }
      ASSERT_LE(end - job->arrival_step, bound) << "priority " << job->priority;
    }
  }
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
        Job* job = Add(1 + static_cast<int64_t>(random() % 20),
                       1 + static_cast<int64_t>(random() % 20), static_cast<int32_t>(random() % 3));
        job->preemptible = random() % 4 != 0;
        ++added;
      }
      std::vector<Sequence*> decoding;
      bool promises = false;
      for (Sequence* s : scheduler->running()) {
        promises = promises || !s->preemptible;
        if (s->state == SequenceState::kDecode) decoding.push_back(s);
      }
      const bool busy = !scheduler->running().empty() || !scheduler->waiting().empty();
      ASSERT_EQ(Step(), busy);
      ASSERT_LE(plan.total_tokens, budget);
      ASSERT_LE(static_cast<int64_t>(scheduler->running().size()), running);
      ASSERT_GE(ledger->free, 0);
      // The best decode always runs, and each that has a promise; with blocks to spare all do.
      for (Sequence* s : decoding) {
        if (!s->preemptible) {
          ASSERT_EQ(TokensOf(static_cast<Job*>(s)), 1);
        }
      }
      if (!decoding.empty() && plan.preemptions == 0 && !promises) {
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
