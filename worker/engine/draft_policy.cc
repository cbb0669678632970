#include "worker/engine/draft_policy.h"

#include <algorithm>

namespace kvist::worker {
namespace {

// How fast a cost that is not seen any more is given up: a step that has become slower for good is
// known as such after some ten.
constexpr double kRise = 1.0 / 16;
// Plain steps beside drafts all the time: they get longer with the context. One in so many costs
// two parts in a hundred of what drafts win at most.
constexpr int64_t kStepsPerPlain = 64;
// Costs measured in a busy minute hold for no longer than this; measuring anew takes a few steps.
constexpr int64_t kStepsPerForgetting = 2048;
// Weight of the newest draft: some four tell a copy.
constexpr double kNewest = 0.25;
// With two rows at twice the cost of one, what trials cost stays below two parts in a hundred.
constexpr int64_t kMatchesPerTrial = 64;

void Track(double sample, double* least) {
  *least = *least == 0 ? sample : std::min(sample, *least * (1 + kRise));
}

}  // namespace

void DraftCosts::Note(const DraftStep& step, uint64_t sequences_id, double seconds) {
  if (++steps_ >= kStepsPerForgetting) {
    steps_ = 0;
    for (Costs& costs : costs_) costs.ratios.fill(0);
  }
  Costs& costs = costs_[static_cast<size_t>(step.sequences - 1)];
  if (costs.sequences_id != sequences_id) {
    costs.sequences_id = sequences_id;
    costs.plain_seconds = 0;
  }
  if (step.drafts == 0) {
    costs.steps_since_plain = 0;
    Track(seconds, &costs.plain_seconds);
    return;
  }
  ++costs.steps_since_plain;
  if (costs.plain_seconds <= 0) return;
  // More rows take no less time.
  Track(std::max(1.0, seconds / costs.plain_seconds),
        &costs.ratios[static_cast<size_t>(step.drafts)]);
}

double DraftCosts::Ratio(const DraftStep& step) const {
  const Costs& costs = costs_[static_cast<size_t>(step.sequences - 1)];
  for (int64_t drafts = step.drafts; drafts > 0; --drafts) {
    const double ratio = costs.ratios[static_cast<size_t>(drafts)];
    if (ratio > 0) return ratio;
  }
  return 1;
}

bool DraftCosts::PlainIsDue(int64_t sequences, uint64_t sequences_id) const {
  const Costs& costs = costs_[static_cast<size_t>(sequences - 1)];
  return costs.sequences_id != sequences_id || costs.steps_since_plain >= kStepsPerPlain;
}

void DraftAcceptance::Note(int length, int64_t drafts, int64_t accepted) {
  double& chance = chances_[IndexOf(length)];
  for (int64_t i = 0; i < std::min(drafts, accepted + 1); ++i) {
    chance += kNewest * ((i < accepted ? 1.0 : 0.0) - chance);
  }
}

bool DraftAcceptance::TrialIsDue(int length) {
  int64_t& left_alone = left_alone_[IndexOf(length)];
  if (++left_alone < kMatchesPerTrial) return false;
  left_alone = 0;
  return true;
}

DraftChoice ChooseDrafts(const DraftCosts& costs, const DraftStep& step, double expected,
                         double chance, int64_t most) {
  DraftChoice best{.drafts = 0, .expected = expected};
  double best_rate = expected / costs.Ratio(step);
  double all_right = 1;
  for (int64_t drafts = 1; drafts <= most; ++drafts) {
    all_right *= chance;
    expected += all_right;
    const double rate =
        expected / costs.Ratio({.sequences = step.sequences, .drafts = step.drafts + drafts});
    if (rate <= best_rate) continue;
    best_rate = rate;
    best = {.drafts = drafts, .expected = expected};
  }
  return best;
}

}  // namespace kvist::worker
