// How many tokens a step may have so that who decodes does not wait long behind another's prompt.
#ifndef KVIST_WORKER_ENGINE_STEP_PACE_H_
#define KVIST_WORKER_ENGINE_STEP_PACE_H_

#include <cstdint>
#include <limits>

namespace kvist::worker {

// Learns from each step with prompts how fast it was, so that it follows the model, the machine and
// the depth of the prompts. The output does not depend on how prompts are cut. Single-threaded.
class StepPace {
 public:
  // `seconds`: of a step that a decode waits in; 0: no limit.
  explicit StepPace(double seconds) : seconds_(seconds) {}

  // Of such a step, decodes included; few as long as nothing was measured.
  int64_t MostTokens() const {
    if (seconds_ <= 0) return std::numeric_limits<int64_t>::max();
    if (tokens_per_second_ <= 0) return kFirst;
    constexpr double kMost = 1e9;  // more than any step has, and an integer
    const double tokens = seconds_ * tokens_per_second_;
    return static_cast<int64_t>(tokens < kMost ? tokens : kMost);
  }
  // A step of so many tokens, `prompt_tokens` of them of prompts, took so long.
  void Note(int64_t tokens, int64_t prompt_tokens, double seconds) {
    // Decodes alone, and the ends of prompts with them, tell little of how fast prompts are read.
    if (prompt_tokens < kLeastMeasured || seconds <= 0) return;
    const double rate = static_cast<double>(tokens) / seconds;
    const bool slower = tokens_per_second_ <= 0 || rate < tokens_per_second_;
    tokens_per_second_ += (rate - tokens_per_second_) * (slower ? 1 : kRise);
  }

 private:
  static constexpr int64_t kFirst = 64;
  static constexpr int64_t kLeastMeasured = 16;
  // Slower is believed at once (prompts get deep), faster by and by (a step may be disturbed).
  static constexpr double kRise = 0.25;

  double seconds_;
  double tokens_per_second_ = 0;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_ENGINE_STEP_PACE_H_
