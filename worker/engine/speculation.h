// Speculative decoding: adds drafts to the decodes of a step, which the sampler then accepts as far
// as they are what it chooses itself. Output is the same in every bit; only speed depends on what
// is decided here.
#ifndef KVIST_WORKER_ENGINE_SPECULATION_H_
#define KVIST_WORKER_ENGINE_SPECULATION_H_

#include <cstddef>
#include <cstdint>

#include "worker/engine/draft_policy.h"
#include "worker/engine/prompt_lookup.h"
#include "worker/scheduler/scheduler.h"

namespace kvist::worker {

struct LiveRequest;

// What one sequence drafts from.
struct Drafter {
  explicit Drafter(size_t max_tokens) : lookup(max_tokens) {}

  PromptLookup lookup;
  DraftAcceptance acceptance;
  int match_length = 0;  // of the drafts under way
};

struct SpeculationOptions {
  int64_t most_drafts = 0;      // of one sequence in one step; 0: none at all
  int64_t max_step_tokens = 0;  // tokens of a step
  int64_t max_logit_rows = 0;   // of a step: each draft takes one
};

// Accumulated since start.
struct SpeculationStats {
  uint64_t drafts = 0;           // decodes of one sequence that had draft tokens
  uint64_t draft_tokens = 0;     // tokens of them
  uint64_t accepted_tokens = 0;  // of these, what the sampler chose as well
};

// Drafts where decodes run alone, for few sequences, never for one that caches nothing. They take
// what the plan has left: tokens of the step, rows of logits, blocks that are to be had without
// taking one from anybody. Single-threaded.
class Speculation {
 public:
  // REQUIRES: 0 <= most_drafts <= kMaxSpeculativeTokens.
  explicit Speculation(const SpeculationOptions& options);

  // The request has its first token and another to come: takes the memory to draft for it.
  void Begin(LiveRequest& live) const;
  // Puts drafts behind the known tokens of sequences and into their chunks.
  // REQUIRES: the plan's sequences are LiveRequests.
  void AddDrafts(Plan* plan);
  // So many drafts of the chunk were accepted.
  void NoteAccepted(const ScheduledChunk& chunk, int64_t accepted);
  // The step of the plan took so long.
  void NoteStep(double seconds);

  const SpeculationStats& stats() const { return stats_; }

 private:
  // Drafts for one sequence; returns how many. `expected`: tokens of the step, brought up to date.
  int64_t Draft(LiveRequest& live, int64_t most, double* expected);

  const SpeculationOptions options_;
  DraftCosts costs_;
  // The step under way; without sequences: not one that drafts.
  DraftStep step_{.sequences = 0};
  uint64_t sequences_id_ = 0;
  SpeculationStats stats_;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_ENGINE_SPECULATION_H_
