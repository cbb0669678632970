#include "worker/engine/speculation.h"

#include <algorithm>

#include "common/base/check.h"
#include "common/base/int_math.h"
#include "worker/engine/live_request.h"

namespace kvist::worker {

Speculation::Speculation(const SpeculationOptions& options) : options_(options) {
  KVIST_CHECK(options.most_drafts >= 0 && options.most_drafts <= kMaxSpeculativeTokens);
  if (options.most_drafts == 0) return;
  for (int64_t i = 0; i < kMaxDraftingSequences; ++i) {
    places_.push_back({.lookup = PromptLookup(static_cast<size_t>(options.max_tokens))});
  }
}

int64_t Speculation::memory_bytes() const {
  int64_t bytes = 0;
  for (const Place& place : places_) bytes += place.lookup.memory_bytes();
  return bytes;
}

void Speculation::AddDrafts(int64_t running, Plan* plan) {
  step_ = {.sequences = 0};
  const int64_t sequences = static_cast<int64_t>(plan->chunks.size());
  if (options_.most_drafts == 0 || sequences == 0 || sequences > kMaxDraftingSequences) return;
  uint64_t id = 0;
  for (const ScheduledChunk& chunk : plan->chunks) {
    if (chunk.sequence->state != SequenceState::kDecode) return;
    id += Mix64(chunk.sequence->arrival);
  }
  step_ = {.sequences = sequences};
  sequences_id_ = id;
  running_ = running;
  if (costs_.PlainIsDue(sequences, id)) return;
  double expected = static_cast<double>(sequences);
  for (ScheduledChunk& chunk : plan->chunks) {
    int64_t most = std::min({options_.most_drafts, options_.max_step_tokens - plan->total_tokens,
                             options_.max_logit_rows - plan->total_tokens});
    LiveRequest& live = static_cast<LiveRequest&>(*chunk.sequence);
    // The last token of all is chosen without storing its own KV.
    most = std::min(most, MostStoredTokens(live.request) - live.known_tokens);
    if (most <= 0) continue;
    const int64_t drafts = Draft(live, LookupOf(live, *plan), most, &expected);
    chunk.drafts = drafts;
    chunk.tokens += drafts;
    chunk.sequence->planned_tokens += drafts;
    plan->total_tokens += drafts;
    step_.drafts += drafts;
  }
}

// Its own, or that of one that the plan leaves out: there is one, as the plan has no more sequences
// than there are places.
PromptLookup& Speculation::LookupOf(const LiveRequest& live, const Plan& plan) {
  Place* other = nullptr;
  for (Place& place : places_) {
    if (place.arrival == live.arrival) return place.lookup;
    const bool planned = std::any_of(
        plan.chunks.begin(), plan.chunks.end(),
        [&](const ScheduledChunk& chunk) { return chunk.sequence->arrival == place.arrival; });
    if (!planned) other = &place;
  }
  KVIST_CHECK(other != nullptr);
  other->arrival = live.arrival;
  other->lookup.Begin(static_cast<size_t>(MostStoredTokens(live.request)));
  return other->lookup;
}

int64_t Speculation::Draft(LiveRequest& live, PromptLookup& lookup, int64_t most,
                           double* expected) {
  Drafting& drafting = live.drafting;
  const auto match = lookup.Find(live.tokens);
  if (!match.has_value()) return 0;
  const DraftChoice choice =
      ChooseDrafts(costs_, step_, *expected, drafting.acceptance.Chance(match->length), most);
  int64_t drafts = choice.drafts;
  if (drafts == 0 && drafting.acceptance.TrialIsDue(match->length)) drafts = 1;
  if (drafts == 0) return 0;
  // A block for drafts that were wrong stays the sequence's, which needs it soon: with a spare one
  // for each running sequence nobody else is short of it until then.
  drafts = std::min(
      drafts, live.blocks.GrowForDrafts(live.known_tokens + drafts, running_) - live.known_tokens);
  if (drafts == 0) return 0;
  *expected = choice.expected;
  drafting.match_length = match->length;
  // Behind the last token it goes on with the drafts themselves: a text that repeats.
  for (int64_t i = 0; i < drafts; ++i) {
    live.tokens.push_back(live.tokens[match->place + static_cast<size_t>(i)]);
  }
  live.draft_tokens += drafts;
  ++stats_.drafts;
  stats_.draft_tokens += static_cast<uint64_t>(drafts);
  return drafts;
}

void Speculation::NoteAccepted(const ScheduledChunk& chunk, int64_t accepted) {
  LiveRequest& live = static_cast<LiveRequest&>(*chunk.sequence);
  live.accepted_tokens += accepted;
  stats_.accepted_tokens += static_cast<uint64_t>(accepted);
  live.drafting.acceptance.Note(live.drafting.match_length, chunk.drafts, accepted);
}

void Speculation::NoteStep(double seconds) {
  if (step_.sequences > 0) costs_.Note(step_, sequences_id_, seconds);
}

}  // namespace kvist::worker
