#include "worker/engine/token_chooser.h"

#include <algorithm>

#include "common/base/check.h"

namespace kvist::worker {
namespace {

std::span<const int32_t> MaskedIds(const LiveRequest& live) {
  if (live.generated_tokens() >= live.request.stop.min_new_tokens) return {};
  return live.request.stop.stop_ids;
}

// The sampler's choice becomes the newest known token. Whether it was drafted.
bool AddToken(int32_t id, LiveRequest& live) {
  const size_t place = static_cast<size_t>(live.known_tokens++);
  if (NeedsCounts(live.request.sampling)) live.counts.AddOutput(id);
  if (place == live.tokens.size()) {
    live.tokens.push_back(id);
    return false;
  }
  const bool drafted = live.tokens[place] == id;
  live.tokens[place] = id;
  return drafted;
}

}  // namespace

std::optional<FinishReason> ReasonToStop(const LiveRequest& live) {
  const int64_t generated = live.generated_tokens();
  if (generated == 0) return std::nullopt;
  const std::vector<int32_t>& stops = live.request.stop.stop_ids;
  const int32_t newest = live.tokens[static_cast<size_t>(live.known_tokens - 1)];
  if (generated > live.request.stop.min_new_tokens &&
      std::find(stops.begin(), stops.end(), newest) != stops.end()) {
    return FinishReason::kStop;
  }
  if (generated >= live.request.stop.max_new_tokens) return FinishReason::kLength;
  return std::nullopt;
}

TokenChooser::TokenChooser(int64_t vocab)
    : sampler_(vocab), outputs_(static_cast<size_t>(1 + kMaxSpeculativeTokens)) {
  sample_.top_logprobs.reserve(kMaxLogprobs);
  for (TokenOutput& output : outputs_) output.top_logprobs.reserve(kMaxLogprobs);
}

ChosenTokens TokenChooser::Choose(const Logits& rows, LiveRequest& live) {
  KVIST_CHECK(rows.rows == 1 + static_cast<int64_t>(live.tokens.size()) - live.known_tokens);
  ChosenTokens chosen;
  size_t count = 0;
  for (bool drafted = true; drafted && chosen.rows < rows.rows && !chosen.reason.has_value();) {
    const float* const row = rows.row(chosen.rows++);
    TokenOutput& output = outputs_[count];
    chosen.status = Sample({row, static_cast<size_t>(rows.vocab)}, live, &output);
    if (!chosen.status.ok()) break;
    ++count;
    drafted = AddToken(output.id, live);
    chosen.accepted += drafted ? 1 : 0;
    chosen.reason = ReasonToStop(live);
  }
  live.tokens.resize(static_cast<size_t>(live.known_tokens));
  chosen.tokens = std::span(outputs_).first(count);
  return chosen;
}

absl::Status TokenChooser::Sample(std::span<const float> logits, const LiveRequest& live,
                                  TokenOutput* output) {
  const absl::Status sampled = sampler_.Sample({.logits = logits,
                                                .options = live.request.sampling,
                                                .counts = &live.counts,
                                                .masked_ids = MaskedIds(live),
                                                .position = live.known_tokens},
                                               &sample_);
  if (!sampled.ok()) return sampled;
  output->index = live.generated_tokens();
  output->id = sample_.id;
  output->logprob.reset();
  output->top_logprobs.clear();
  if (live.request.sampling.logprobs >= 0) {
    output->logprob = sample_.logprob;
    for (const auto& [id, logprob] : sample_.top_logprobs) {
      output->top_logprobs.push_back({id, logprob});
    }
  }
  return absl::OkStatus();
}

}  // namespace kvist::worker
