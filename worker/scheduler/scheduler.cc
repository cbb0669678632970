#include "worker/scheduler/scheduler.h"

#include <algorithm>

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
  sequence->state = SequenceState::kWaiting;
  InsertInOrder(waiting_, sequence);
}

void Scheduler::Remove(Sequence* sequence) {
  std::erase(waiting_, sequence);
  std::erase(running_, sequence);
  sequence->state = SequenceState::kFinished;
}

void Scheduler::Schedule(Plan* plan) {
  plan->chunks.clear();
  plan->total_tokens = 0;
  plan->preemptions = 0;
  short_of_blocks_ = false;
  for (Sequence* sequence : running_) sequence->planned_tokens = 0;
  ScheduleDecodes(plan);
  SchedulePrefills(plan);
}

void Scheduler::ScheduleDecodes(Plan* plan) {
  // Preemption takes from the back, so the index stays good.
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence* sequence = running_[i];
    if (sequence->state != SequenceState::kDecode) continue;
    if (GrowOrPreempt(sequence, 1, plan) == 1) AddChunk(sequence, 1, plan);
  }
}

void Scheduler::SchedulePrefills(Plan* plan) {
  const Sequence* last = nullptr;
  while (plan->total_tokens < options_.max_step_tokens) {
    Sequence* next = NextPrefill(last);
    if (!short_of_blocks_ && !waiting_.empty() &&
        (next == nullptr || ServedBefore(*waiting_.front(), *next))) {
      if (AdmitFirst()) continue;
    }
    if (next == nullptr) return;
    last = next;
    const int64_t want =
        std::min(options_.max_step_tokens - plan->total_tokens, next->MissingTokens());
    const int64_t tokens = GrowOrPreempt(next, want, plan);
    if (tokens > 0) AddChunk(next, tokens, plan);
  }
}

Sequence* Scheduler::NextPrefill(const Sequence* after) const {
  for (Sequence* sequence : running_) {
    if (sequence->state != SequenceState::kPrefill || sequence->planned_tokens > 0) continue;
    if (after == nullptr || ServedBefore(*after, *sequence)) return sequence;
  }
  return nullptr;
}

// Moves the first waiting sequence to the running ones. False if it must wait; nobody is asked
// again in this step.
bool Scheduler::AdmitFirst() {
  Sequence* sequence = waiting_.front();
  const int64_t running = static_cast<int64_t>(running_.size());
  // A spare block for each running sequence: they will want one soon, and taking it from the
  // newcomer would undo its work.
  if (running >= options_.max_running_sequences || !ledger_->Admit(*sequence, running)) {
    short_of_blocks_ = true;
    return false;
  }
  waiting_.erase(waiting_.begin());
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
    if (running_.back() == sequence) return 0;
    PreemptLast(plan);
  }
}

void Scheduler::PreemptLast(Plan* plan) {
  Sequence* victim = running_.back();
  running_.pop_back();
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
