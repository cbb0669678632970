// How often each token occurred in one sequence: what the penalties read.
#ifndef KVIST_WORKER_SAMPLING_TOKEN_COUNTS_H_
#define KVIST_WORKER_SAMPLING_TOKEN_COUNTS_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/container/flat_hash_map.h"

namespace kvist::worker {

// Distinct tokens of a prompt and an output, kept incrementally: O(1) per new token.
// Thread-compatible.
class TokenCounts {
 public:
  // An entry exists for each token seen; one of the prompt alone has the count 0.
  using Map = absl::flat_hash_map<int32_t, int32_t>;

  void AddPrompt(std::span<const int32_t> ids) {
    for (const int32_t id : ids) counts_.try_emplace(id, 0);
  }
  void AddOutput(int32_t id) { ++counts_[id]; }
  // Room for `more` further distinct tokens, so that AddOutput allocates nothing.
  void Reserve(size_t more) { counts_.reserve(counts_.size() + more); }

  const Map& map() const { return counts_; }

 private:
  Map counts_;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_SAMPLING_TOKEN_COUNTS_H_
