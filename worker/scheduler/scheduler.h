// Decides what each step runs: continuous batching with chunked prefill under a token budget, and
// who gives way when blocks run out.
#ifndef KVIST_WORKER_SCHEDULER_SCHEDULER_H_
#define KVIST_WORKER_SCHEDULER_SCHEDULER_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "worker/scheduler/sequence.h"

namespace kvist::worker {

// Of a victim that gives its blocks back.
struct Loss {
  // Each pool that has no block left would have one. Not if others hold all of the victim's there.
  bool helps = true;
  // Its tokens that are computed again if the blocks that only it holds are taken by others, as
  // they are one by one while it waits. What is on a tier too is read and not lost.
  int64_t tokens = 0;
};

// The mechanism behind the decisions: the engine's block tables, or a test's book-keeping.
class BlockLedger {
 public:
  virtual ~BlockLedger() = default;
  // Takes what the prefix cache has of a waiting sequence and sets its stored_tokens. False, and
  // nothing is held, if the pools cannot hold all its known tokens now with `spare_blocks` left in
  // each; for one that is not preemptible, all tokens it will ever have, which are promised to it
  // then. False also if blocks of it are being read first: it is `restoring` then, and is asked for
  // again when it is not. REQUIRES: nothing is held, it is not restoring.
  virtual bool Admit(Sequence& sequence, int64_t spare_blocks) = 0;
  // Takes blocks for up to `tokens` beyond the stored ones. Returns how many of them have blocks
  // now.
  virtual int64_t Grow(Sequence& sequence, int64_t tokens) = 0;
  // What it would mean if `victim` gave its blocks back; nullopt if it has none of the pools of
  // `needy`.
  virtual std::optional<Loss> LossOf(const Sequence& victim, const Sequence& needy) const = 0;
  // Gives back all blocks of the sequence (those that are named stay cached) and sets its
  // stored_tokens to 0.
  virtual void Preempt(Sequence& sequence) = 0;
};

struct ScheduledChunk {
  Sequence* sequence = nullptr;
  int64_t first_position = 0;  // stored_tokens before the step
  int64_t tokens = 0;
  int64_t drafts = 0;  // of these, the last ones: guesses behind the newest token (speculation.h)
  // The chunk ends with the newest token: its logits are wanted.
  bool completes = false;
};

struct Plan {
  std::vector<ScheduledChunk> chunks;
  int64_t total_tokens = 0;
  int64_t preemptions = 0;
};

// Prompts get so many tokens in a step that has as many left, whatever else is in it: they go on.
inline constexpr int64_t kLeastPromptTokens = 16;

// A pure decision over the sequences it was given: no clock, no randomness, no KV. Order of service
// is priority and age (ServedBefore), then arrival.
//   1. Decodes first, one token each: max_step_tokens holds one for all that run. So a decode never
//      waits behind a prompt for more than one step, and a step never computes more than
//      max_step_tokens tokens, however long the prompts are; nor, with a decode in it, more than
//      the caller allows, but for kLeastPromptTokens of prompts.
//   2. The rest of the budget goes to prefill chunks and to admissions, in the order of service.
//      Who is first in the queue and does not fit holds up those behind, so nobody starves by being
//      passed over. One whose blocks are being read is passed over meanwhile, once an admission.
//   3. Who needs a block when there is none takes it from one behind itself in the order of
//      service: one whose blocks help, of lowest priority, then the one that loses least, then the
//      latest; never from one that is not preemptible. Without one behind it, it pauses and keeps
//      its blocks. One that is not preemptible itself, and waits for promised blocks that others
//      still use, may also take from those before it.
// So the first in the order moves on in every step, or those with promises, which end by
// themselves, do: every sequence ends. And no request starves, whatever priorities arrive: one of
// priority p is overtaken only by those that come within (p' - p) * kStepsPerPriority steps after
// it with a higher priority p'. Once these steps have passed, it waits for at most as many steps as
// those before it and those with promises have tokens together, prompt and answer: each step moves
// the first of them by one token or more.
// Keeps pointers to the sequences between Add and Remove. Single-threaded.
class Scheduler {
 public:
  struct Options {
    int32_t max_running_sequences = 64;
    int64_t max_step_tokens =
        256;  // REQUIRES: at least max_running_sequences, so that every decode fits
  };

  // REQUIRES: ledger outlives the scheduler.
  Scheduler(const Options& options, BlockLedger* ledger);

  // Adds a waiting sequence. REQUIRES: alone in the pools it fits; arrival is unique.
  void Add(Sequence* sequence);
  // The same, in the rank that it has: that of a sequence it came with.
  void AddInRank(Sequence* sequence);
  // Whether one more sequence may run, and nobody waits for that who is served before this one.
  bool HasPlaceFor(const Sequence& sequence) const;
  // Adds a running sequence, in the rank and state that it has. REQUIRES: HasPlaceFor; the ledger
  // has its blocks.
  void Join(Sequence* sequence);
  // Forgets a sequence and marks it finished; its blocks are the caller's to give back.
  void Remove(Sequence* sequence);
  // Fills `plan` and moves sequences between waiting and running. The caller runs the plan, then
  // advances stored_tokens, known_tokens and state of the planned sequences. `tokens_with_decodes`:
  // the most tokens of a step that somebody's decode is in, it included.
  void Schedule(Plan* plan, int64_t tokens_with_decodes = std::numeric_limits<int64_t>::max());

  // In order of service.
  const std::vector<Sequence*>& running() const { return running_; }
  const std::vector<Sequence*>& waiting() const { return waiting_; }

 private:
  void ScheduleDecodes(Plan* plan);
  // Up to so many tokens in all.
  void SchedulePrefills(int64_t most_tokens, Plan* plan);
  // The first running sequence in that state behind `after` (null: of all), or null.
  Sequence* NextRunning(SequenceState state, const Sequence* after) const;
  // The first waiting sequence that may be admitted, or null.
  Sequence* FirstReady() const;
  bool Admit(Sequence* sequence);
  int64_t GrowOrPreempt(Sequence* sequence, int64_t tokens, Plan* plan);
  // Whom `needy` takes blocks from; null if from nobody.
  Sequence* PickVictim(const Sequence& needy) const;
  void Preempt(Sequence* victim, Plan* plan);
  void AddChunk(Sequence* sequence, int64_t tokens, Plan* plan);

  Options options_;
  BlockLedger* ledger_;
  std::vector<Sequence*> running_;
  std::vector<Sequence*> waiting_;
  bool short_of_blocks_ = false;  // in this step: nobody new is admitted
  int64_t steps_ = 0;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_SCHEDULER_SCHEDULER_H_
