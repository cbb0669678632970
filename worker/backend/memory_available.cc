#include "worker/backend/memory_available.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

namespace kvist::worker {
namespace {

// The number in a control group's file, or nullopt if there is none ("max", or no such file).
std::optional<int64_t> ReadNumber(const char* path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (!(file >> value)) return std::nullopt;
  return value;
}

// Version 2 of control groups, as seen from inside a container.
int64_t ControlGroupLeftBytes() {
  const std::optional<int64_t> limit = ReadNumber("/sys/fs/cgroup/memory.max");
  const std::optional<int64_t> used = ReadNumber("/sys/fs/cgroup/memory.current");
  if (!limit.has_value() || !used.has_value()) return std::numeric_limits<int64_t>::max();
  return std::max<int64_t>(0, *limit - *used);
}

}  // namespace

absl::StatusOr<int64_t> MemoryAvailableBytes() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  int64_t kilobytes = 0;
  std::string unit;
  while (file >> key >> kilobytes && std::getline(file, unit)) {
    if (key == "MemAvailable:") return std::min(kilobytes * 1024, ControlGroupLeftBytes());
  }
  return absl::InternalError("/proc/meminfo has no MemAvailable");
}

}  // namespace kvist::worker
