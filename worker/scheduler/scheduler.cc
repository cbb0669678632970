#include "worker/scheduler/scheduler.h"

#include <algorithm>
#include <tuple>

#include "common/base/check.h"

namespace kvist::worker {
namespace {

void InsertInOrder(std::vector<Sequence*>& sequences, Sequence* sequence) {
  const auto place =
      std::upper_bound(sequences.begin(), sequences.end(), sequence,
                       [](const Sequence* a, const Sequence* b) { return ServedBefore(*a, *b); });
  sequences.insert(place, sequence);
}

}  // namespace

Scheduler::Scheduler(const Options& options, BlockLedger* ledger)
    : options_(options), ledger_(ledger) {
  KVIST_CHECK(options.max_running_sequences > 0);
  KVIST_CHECK(options.max_step_tokens >= options.max_running_sequences);
  running_.reserve(static_cast<size_t>(options.max_running_sequences));
}

void Scheduler::Add(Sequence* sequence) {
  sequence->rank = steps_ - sequence->priority * kStepsPerPriority;
  AddInRank(sequence);
}

void Scheduler::AddInRank(Sequence* sequence) {
  sequence->state = SequenceState::kWaiting;
  InsertInOrder(waiting_, sequence);
}

bool Scheduler::HasPlaceFor(const Sequence& sequence) const {
  if (running_.size() >= static_cast<size_t>(options_.max_running_sequences)) return false;
  const Sequence* const ready = FirstReady();
  return ready == nullptr || ServedBefore(sequence, *ready);
}

void Scheduler::Join(Sequence* sequence) {
  KVIST_CHECK(HasPlaceFor(*sequence));
  sequence->planned_tokens = 0;
  InsertInOrder(running_, sequence);
}

void Scheduler::Remove(Sequence* sequence) {
  std::erase(waiting_, sequence);
  std::erase(running_, sequence);
  sequence->state = SequenceState::kFinished;
}

void Scheduler::Schedule(Plan* plan, int64_t tokens_with_decodes) {
  plan->chunks.clear();
  plan->total_tokens = 0;
  plan->preemptions = 0;
  short_of_blocks_ = false;
  ++steps_;
  for (Sequence* sequence : running_) sequence->planned_tokens = 0;
  ScheduleDecodes(plan);
  int64_t most = options_.max_step_tokens;
  if (!plan->chunks.empty()) {
    most = std::min(most, std::max(tokens_with_decodes, plan->total_tokens + kLeastPromptTokens));
  }
  SchedulePrefills(most, plan);
}

void Scheduler::ScheduleDecodes(Plan* plan) {
  Sequence* next = nullptr;
  while ((next = NextRunning(SequenceState::kDecode, next)) != nullptr) {
    if (GrowOrPreempt(next, 1, plan) == 1) AddChunk(next, 1, plan);
  }
}

void Scheduler::SchedulePrefills(int64_t most_tokens, Plan* plan) {
  const Sequence* last = nullptr;
  while (plan->total_tokens < most_tokens) {
    Sequence* next = NextRunning(SequenceState::kPrefill, last);
    Sequence* const ready = short_of_blocks_ ? nullptr : FirstReady();
    if (ready != nullptr && (next == nullptr || ServedBefore(*ready, *next))) {
      if (Admit(ready) || ready->restoring) continue;
    }
    if (next == nullptr) return;
    last = next;
    const int64_t want = std::min(most_tokens - plan->total_tokens, next->MissingTokens());
    const int64_t tokens = GrowOrPreempt(next, want, plan);
    if (tokens > 0) AddChunk(next, tokens, plan);
  }
}

Sequence* Scheduler::NextRunning(SequenceState state, const Sequence* after) const {
  auto next = running_.begin();
  if (after != nullptr) {
    next =
        std::upper_bound(running_.begin(), running_.end(), after,
                         [](const Sequence* a, const Sequence* b) { return ServedBefore(*a, *b); });
  }
  next =
      std::find_if(next, running_.end(), [state](const Sequence* s) { return s->state == state; });
  return next == running_.end() ? nullptr : *next;
}

Sequence* Scheduler::FirstReady() const {
  const auto ready = std::find_if(waiting_.begin(), waiting_.end(),
                                  [](const Sequence* s) { return !s->restoring; });
  return ready == waiting_.end() ? nullptr : *ready;
}

// Moves a waiting sequence to the running ones. False if it must wait; unless that is for its own
// blocks, nobody is asked again in this step.
bool Scheduler::Admit(Sequence* sequence) {
  const int64_t running = static_cast<int64_t>(running_.size());
  // A spare block for each running sequence: they will want one soon, and taking it from the
  // newcomer would undo its work.
  if (running >= options_.max_running_sequences || !ledger_->Admit(*sequence, running)) {
    short_of_blocks_ = !sequence->restoring;
    return false;
  }
  std::erase(waiting_, sequence);
  sequence->state = SequenceState::kPrefill;
  sequence->planned_tokens = 0;
  InsertInOrder(running_, sequence);
  return true;
}

int64_t Scheduler::GrowOrPreempt(Sequence* sequence, int64_t tokens, Plan* plan) {
  while (true) {
    const int64_t granted = ledger_->Grow(*sequence, tokens);
    if (granted > 0) return granted;
    short_of_blocks_ = true;
    Sequence* victim = PickVictim(*sequence);
    if (victim == nullptr) return 0;
    Preempt(victim, plan);
  }
}

Sequence* Scheduler::PickVictim(const Sequence& needy) const {
  Sequence* best = nullptr;
  std::tuple<bool, bool, int32_t, int64_t> best_cost;
  // From the last on: among equals it stays.
  for (auto it = running_.rbegin(); it != running_.rend(); ++it) {
    Sequence* candidate = *it;
    const bool before = !ServedBefore(needy, *candidate);
    if (candidate == &needy || !candidate->preemptible || (before && needy.preemptible)) continue;
    const std::optional<Loss> loss = ledger_->LossOf(*candidate, needy);
    if (!loss.has_value()) continue;
    const std::tuple cost(before, !loss->helps, candidate->priority, loss->tokens);
    if (best == nullptr || cost < best_cost) {
      best = candidate;
      best_cost = cost;
    }
  }
  return best;
}

void Scheduler::Preempt(Sequence* victim, Plan* plan) {
  std::erase(running_, victim);
  if (victim->planned_tokens > 0) {
    plan->total_tokens -= victim->planned_tokens;
    victim->planned_tokens = 0;
    std::erase_if(plan->chunks,
                  [victim](const ScheduledChunk& chunk) { return chunk.sequence == victim; });
  }
  ledger_->Preempt(*victim);
  victim->state = SequenceState::kWaiting;
  InsertInOrder(waiting_, victim);
  ++plan->preemptions;
}

void Scheduler::AddChunk(Sequence* sequence, int64_t tokens, Plan* plan) {
  sequence->planned_tokens = tokens;
  plan->chunks.push_back({.sequence = sequence,
                          .first_position = sequence->stored_tokens,
                          .tokens = tokens,
                          .completes = tokens == sequence->MissingTokens()});
  plan->total_tokens += tokens;
}

}  // namespace kvist::worker
