#include "cache_manager/events.h"

namespace kvist::cache_manager {

std::string_view TierName(Tier tier) {
  switch (tier) {
    case Tier::kDevice:
      return "device";
    case Tier::kHost:
      return "host";
    case Tier::kDisk:
      return "disk";
  }
  return "unknown";
}

std::string_view EvictionCauseName(EvictionCause cause) {
  switch (cause) {
    case EvictionCause::kCapacity:
      return "capacity";
    case EvictionCause::kQuota:
      return "quota";
    case EvictionCause::kRetentionEnded:
      return "retention_ended";
    case EvictionCause::kClosed:
      return "closed";
    case EvictionCause::kDrained:
      return "drained";
    case EvictionCause::kCommand:
      return "command";
  }
  return "unknown";
}

std::string_view SessionPhaseName(SessionPhase phase) {
  switch (phase) {
    case SessionPhase::kActive:
      return "active";
    case SessionPhase::kWaiting:
      return "waiting";
    case SessionPhase::kPaused:
      return "paused";
    case SessionPhase::kIdle:
      return "idle";
    case SessionPhase::kClosed:
      return "closed";
  }
  return "unknown";
}

}  // namespace kvist::cache_manager
