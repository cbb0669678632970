#include "worker/model/rope_table.h"

#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace kvist::worker {

absl::StatusOr<RopeTable> RopeTable::Create(const RopeConfig& config, int64_t positions,
                                            int64_t pairs, const float* factors) {
  RopeTable table;
  table.pairs_ = pairs;
  KVIST_ASSIGN_OR_RETURN(table.values_,
                         Buffer<float>::Create(2 * positions * pairs, "rope tables"));
  std::vector<double> frequencies;
  for (int64_t i = 0; i < pairs; ++i) {
    const double exponent = -static_cast<double>(i) / static_cast<double>(pairs);
    const double factor = factors == nullptr ? 1.0 : static_cast<double>(factors[i]);
    if (!std::isfinite(factor) || factor <= 0) {
      return absl::InvalidArgumentError(absl::StrCat("tensor rope_freqs.weight: value ", i, " is ",
                                                     factor, ", not a positive number"));
    }
    frequencies.push_back(std::pow(config.base, exponent) / (factor * config.position_scale));
  }
  float* out = table.values_.data();
  for (int64_t position = 0; position < positions; ++position, out += 2 * pairs) {
    for (int64_t i = 0; i < pairs; ++i) {
      const double angle = static_cast<double>(position) * frequencies[static_cast<size_t>(i)];
      out[i] = static_cast<float>(std::cos(angle));
      out[pairs + i] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

}  // namespace kvist::worker
