// How many drafts a sequence gets in a step: what they cost, how often they were right. Pure: time
// comes as an argument. Decides about speed alone, never about output.
#ifndef KVIST_WORKER_ENGINE_DRAFT_POLICY_H_
#define KVIST_WORKER_ENGINE_DRAFT_POLICY_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "worker/engine/prompt_lookup.h"

namespace kvist::worker {

// Of one sequence in one step at most: nine rows are compute-bound on any CPU.
inline constexpr int64_t kMaxSpeculativeTokens = 8;
// With more sequences that decode, nobody drafts: their rows have made the step compute-bound, and
// a draft that may be wrong costs as much as a token that is not.
inline constexpr int64_t kMaxDraftingSequences = 2;
inline constexpr int64_t kMaxStepDrafts = kMaxSpeculativeTokens * kMaxDraftingSequences;

// A step that runs decodes alone.
struct DraftStep {
  int64_t sequences = 1;  // 1 .. kMaxDraftingSequences
  int64_t drafts = 0;     // of all of them, up to kMaxStepDrafts
};

// What steps with drafts cost, in plain ones. Neighbours on the machine only ever make a step
// longer, so it keeps the least that was seen of late. Single-threaded.
class DraftCosts {
 public:
  // A step took so long. `sequences_id` is another if other sequences ran: their contexts differ,
  // and so do their steps.
  void Note(const DraftStep& step, uint64_t sequences_id, double seconds);
  // Of a step, how often the plain one with the same sequences fits into its time. What is not
  // known yet costs as much as the next fewer drafts that are known, or nothing: so it is tried.
  double Ratio(const DraftStep& step) const;
  // Whether a plain step is due: without one there is nothing to compare with.
  bool PlainIsDue(int64_t sequences, uint64_t sequences_id) const;

 private:
  struct Costs {
    uint64_t sequences_id = 0;
    double plain_seconds = 0;  // 0: not known
    int64_t steps_since_plain = 0;
    std::array<double, kMaxStepDrafts + 1> ratios{};  // by drafts; 0: not known
  };
  std::array<Costs, kMaxDraftingSequences> costs_;  // by sequences
  int64_t steps_ = 0;                               // since ratios were forgotten
};

// How often one sequence's drafts were right, by the length of the run that was found.
// Single-threaded.
class DraftAcceptance {
 public:
  // The chance that the next draft is right if those before it are.
  double Chance(int length) const { return chances_[IndexOf(length)]; }
  // Of so many drafts, `accepted` were right; the first wrong one is the last that tells anything.
  void Note(int length, int64_t drafts, int64_t accepted);
  // A match is left alone because it would not pay. True once in kMatchesPerTrial: try one draft
  // all the same, the text may have changed.
  bool TrialIsDue(int length);

 private:
  static size_t IndexOf(int length) { return static_cast<size_t>(length - kLeastLookupLength); }
  // Before anything is known: one try costs little, and copied text is soon told from other.
  static constexpr double kFirstChance = 0.5;
  std::array<double, kLookupLengths> chances_ = {kFirstChance, kFirstChance, kFirstChance};
  std::array<int64_t, kLookupLengths> left_alone_{};
};

struct DraftChoice {
  int64_t drafts = 0;
  double expected = 0;  // tokens of all sequences that the step gives with them
};
// The number of further drafts, at most `most`, with which a step gives most tokens in its time;
// none if more do not pay. `expected`: the tokens that the step gives without them; `chance`: of
// each, if those before it are right.
DraftChoice ChooseDrafts(const DraftCosts& costs, const DraftStep& step, double expected,
                         double chance, int64_t most);

}  // namespace kvist::worker

#endif  // KVIST_WORKER_ENGINE_DRAFT_POLICY_H_
