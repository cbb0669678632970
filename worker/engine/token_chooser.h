// Chooses the tokens that follow a chunk from its rows of logits.
#ifndef KVIST_WORKER_ENGINE_TOKEN_CHOOSER_H_
#define KVIST_WORKER_ENGINE_TOKEN_CHOOSER_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "worker/backend/batch.h"
#include "worker/engine/draft_policy.h"
#include "worker/engine/live_request.h"
#include "worker/engine/request.h"
#include "worker/sampling/sampler.h"

namespace kvist::worker {

// Whether the newest token was the last.
std::optional<FinishReason> ReasonToStop(const LiveRequest& live);

struct ChosenTokens {
  std::span<const TokenOutput> tokens;  // valid until the next call
  int64_t rows = 0;                     // of logits that count
  int64_t accepted = 0;                 // drafts among the tokens
  std::optional<FinishReason> reason;   // of the last token
  absl::Status status;                  // INTERNAL: the last row gave none
};

// Takes all its memory at construction. Single-threaded.
class TokenChooser {
 public:
  explicit TokenChooser(int64_t vocab);

  // Row by row what the sampler chooses. `live.tokens` may have drafts behind the known ones; a row
  // behind a draft counts if the sampler has just chosen that draft itself, and no stop came. The
  // chosen tokens are known ones of `live` then, and the drafts are gone.
  // REQUIRES: a row for the newest known token and for each draft.
  ChosenTokens Choose(const Logits& rows, LiveRequest& live);

 private:
  absl::Status Sample(std::span<const float> logits, const LiveRequest& live, TokenOutput* output);

  Sampler sampler_;
  SampleOutput sample_;
  std::vector<TokenOutput> outputs_;  // as many as a step can give one sequence
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_ENGINE_TOKEN_CHOOSER_H_
