// A sequence as the scheduler sees it: plain data.
#ifndef KVIST_WORKER_SCHEDULER_SEQUENCE_H_
#define KVIST_WORKER_SCHEDULER_SEQUENCE_H_

#include <cstdint>

namespace kvist::worker {

// waiting to prefill when scheduled; prefill to decode when it gives a token; decode to
// finished at a stop. Preempted, prefill and decode go back to waiting. With nothing cached (kind
// none), decode goes back to prefill for each token. Every state goes to finished on cancel,
// deadline or error.
enum class SequenceState : uint8_t {
  kWaiting,  // holds no blocks
  kPrefill,  // lacks the KV of some of its tokens; gives its next token when the newest is done
  kDecode,   // gave a token in its last chunk: lacks the KV of exactly that one
  kFinished,
};

struct Sequence {
  int32_t priority = 0;     // higher is served first: kStepsPerPriority steps a level
  uint64_t arrival = 0;     // unique; earlier is served first among equals; kept when preempted
  bool preemptible = true;  // false: its blocks were promised to it, nobody takes them
  bool restoring = false;   // waits for its blocks to be read: others are admitted before it
  SequenceState state = SequenceState::kWaiting;
  int64_t known_tokens = 0;    // prompt and generated
  int64_t stored_tokens = 0;   // leading tokens whose KV is in blocks
  int64_t planned_tokens = 0;  // of this step; the scheduler's
  int64_t rank = 0;            // the scheduler's: the step it came in, less its priority's steps

  int64_t MissingTokens() const { return known_tokens - stored_tokens; }
};

// One level of priority is a head start of so many steps, seconds on a busy CPU. Waiting makes up
// for it, so that nobody starves.
inline constexpr int64_t kStepsPerPriority = 64;

// Whether `a` is served before `b`: the priority of both rises by a level every kStepsPerPriority
// steps, so their order never changes.
inline bool ServedBefore(const Sequence& a, const Sequence& b) {
  return a.rank != b.rank ? a.rank < b.rank : a.arrival < b.arrival;
}

}  // namespace kvist::worker

#endif  // KVIST_WORKER_SCHEDULER_SEQUENCE_H_
