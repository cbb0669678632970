// Speculative decoding: adds drafts to the decodes of a step, which the sampler then accepts as far
// as they are what it chooses itself. Output is the same in every bit; only speed depends on what
// is decided here.
#ifndef KVIST_WORKER_ENGINE_SPECULATION_H_
#define KVIST_WORKER_ENGINE_SPECULATION_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "worker/engine/draft_policy.h"
#include "worker/engine/prompt_lookup.h"
#include "worker/scheduler/scheduler.h"

namespace kvist::worker {

struct LiveRequest;

// How one sequence's drafts fare.
struct Drafting {
  DraftAcceptance acceptance;
  int match_length = 0;  // of the drafts under way
};

struct SpeculationOptions {
  int64_t most_drafts = 0;      // of one sequence in one step; 0: none at all
  int64_t max_step_tokens = 0;  // tokens of a step
  int64_t max_logit_rows = 0;   // of a step: each draft takes one
  int64_t max_tokens = 0;       // of a sequence
};

// Accumulated since start.
struct SpeculationStats {
  uint64_t drafts = 0;           // decodes of one sequence that had draft tokens
  uint64_t draft_tokens = 0;     // tokens of them
  uint64_t accepted_tokens = 0;  // of these, what the sampler chose as well
};

// Drafts where decodes run alone, for few sequences, never for one that caches nothing. They take
// what the plan has left: tokens of the step, rows of logits, blocks that are to be had without
// taking one from anybody. Owns a lookup for each sequence that may draft at once: a sequence is
// entered there when it decodes among few, and loses its place to another that does when it does
// not. Single-threaded.
class Speculation {
 public:
  // REQUIRES: 0 <= most_drafts <= kMaxSpeculativeTokens.
  explicit Speculation(const SpeculationOptions& options);

  // Puts drafts behind the known tokens of sequences and into their chunks. `running`: sequences,
  // those that the plan leaves out included.
  // REQUIRES: the plan's sequences are LiveRequests of at most max_tokens.
  void AddDrafts(int64_t running, Plan* plan);
  // So many drafts of the chunk were accepted.
  void NoteAccepted(const ScheduledChunk& chunk, int64_t accepted);
  // The step of the plan took so long.
  void NoteStep(double seconds);

  // Of the lookups, in address space. Constant.
  int64_t memory_bytes() const;
  const SpeculationStats& stats() const { return stats_; }

 private:
  // A lookup and whose it is.
  struct Place {
    uint64_t arrival = 0;  // of the sequence; 0: nobody's
    PromptLookup lookup;
  };

  // What a sequence of the plan looks up in.
  PromptLookup& LookupOf(const LiveRequest& live, const Plan& plan);
  // Drafts for one sequence; returns how many, at most `most`. `expected`: tokens of the step,
  // brought up to date.
  int64_t Draft(LiveRequest& live, PromptLookup& lookup, int64_t most, double* expected);

  const SpeculationOptions options_;
  std::vector<Place> places_;  // kMaxDraftingSequences, or none if nobody may draft
  int64_t running_ = 0;        // sequences in the step under way
  DraftCosts costs_;
  // The step under way; without sequences: not one that drafts.
  DraftStep step_{.sequences = 0};
  uint64_t sequences_id_ = 0;
  SpeculationStats stats_;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_ENGINE_SPECULATION_H_
