#include "services/frontend/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace kvist::services {

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) longest_ = std::max(longest_, stop.size());
}

std::optional<int64_t> StopMatcher::Push(std::string_view text) {
  if (match_.has_value()) return match_;
  if (stops_.empty()) {
    end_offset_ += static_cast<int64_t>(text.size());
    safe_offset_ = end_offset_;
    return std::nullopt;
  }
  const size_t old_tail = tail_.size();
  tail_.append(text);
  const int64_t tail_offset = end_offset_ - static_cast<int64_t>(old_tail);
  end_offset_ += static_cast<int64_t>(text.size());
  for (size_t end = old_tail + 1; end <= tail_.size(); ++end) {
    const std::string_view so_far = std::string_view(tail_).substr(0, end);
    size_t length = 0;
    for (const std::string& stop : stops_) {
      if (stop.size() > length && so_far.ends_with(stop)) length = stop.size();
    }
    if (length > 0) {
      match_ = tail_offset + static_cast<int64_t>(end - length);
      safe_offset_ = *match_;
      return match_;
    }
  }
  UpdateSafeOffset();
  if (tail_.size() >= longest_) tail_.erase(0, tail_.size() - (longest_ - 1));
  return std::nullopt;
}

// The longest end of the text that is a beginning of some stop string stays unsafe.
void StopMatcher::UpdateSafeOffset() {
  size_t held = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, tail_.size()); length > held; --length) {
      if (std::string_view(tail_).ends_with(std::string_view(stop).substr(0, length)))
        held = length;
    }
  }
  safe_offset_ = end_offset_ - static_cast<int64_t>(held);
}

}  // namespace kvist::services
