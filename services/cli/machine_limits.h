// What this machine could do at best: the limits that benchmarks are printed beside.
#ifndef KVIST_SERVICES_CLI_MACHINE_LIMITS_H_
#define KVIST_SERVICES_CLI_MACHINE_LIMITS_H_

#include <string_view>

#include "absl/status/statusor.h"

namespace kvist::services {

struct MachineLimits {
  double memory_bandwidth_bytes_per_second = 0;  // reading, all threads together
  double int8_macs_per_second = 0;               // the same
};

// Measures for about half a second. Errors as ThreadTeam::Create and Arena::Create.
absl::StatusOr<MachineLimits> MeasureLimits(int threads, std::string_view kernels);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CLI_MACHINE_LIMITS_H_
