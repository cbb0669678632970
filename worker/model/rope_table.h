// Cosines and sines of rotary embeddings, computed once.
#ifndef KVIST_WORKER_MODEL_ROPE_TABLE_H_
#define KVIST_WORKER_MODEL_ROPE_TABLE_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "worker/model/config.h"
#include "worker/tensor/arena.h"

namespace kvist::worker {

// cos and sin of every position's angles, [positions, pairs] each, computed in double and rounded
// once: the same bits on every machine's kernels. Thread-compatible.
class RopeTable {
 public:
  RopeTable() = default;
  // `factors`: [pairs] divisors of the frequencies, or nullptr. INVALID_ARGUMENT unless they are
  // positive numbers; RESOURCE_EXHAUSTED if there is no memory.
  static absl::StatusOr<RopeTable> Create(const RopeConfig& config, int64_t positions,
                                          int64_t pairs, const float* factors);

  const float* Cosines(int64_t position) const { return values_.data() + 2 * position * pairs_; }
  const float* Sines(int64_t position) const { return Cosines(position) + pairs_; }
  int64_t taken_bytes() const { return values_.taken_bytes(); }

 private:
  int64_t pairs_ = 0;
  Buffer<float> values_;  // [positions][cosines, sines][pairs]
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_MODEL_ROPE_TABLE_H_
