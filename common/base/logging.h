// Process-wide logging to stderr through spdlog. Messages never hold prompts, generated text or
// secrets.
#ifndef KVIST_COMMON_BASE_LOGGING_H_
#define KVIST_COMMON_BASE_LOGGING_H_

#include <string_view>

#include "absl/status/status.h"
#include "spdlog/spdlog.h"

namespace kvist {

// Sets pattern and level ("debug", "info", "warning", "error", "off"). Thread-safe.
// INVALID_ARGUMENT for an unknown level.
absl::Status SetUpLogging(std::string_view level);

// LogInfo("worker {} ready", id): one line on stderr. Thread-safe.
template <typename... Args>
void LogDebug(fmt::format_string<Args...> format, Args&&... args) {
  spdlog::debug(format, std::forward<Args>(args)...);
}
template <typename... Args>
void LogInfo(fmt::format_string<Args...> format, Args&&... args) {
  spdlog::info(format, std::forward<Args>(args)...);
}
template <typename... Args>
void LogWarning(fmt::format_string<Args...> format, Args&&... args) {
  spdlog::warn(format, std::forward<Args>(args)...);
}
template <typename... Args>
void LogError(fmt::format_string<Args...> format, Args&&... args) {
  spdlog::error(format, std::forward<Args>(args)...);
}

}  // namespace kvist

#endif  // KVIST_COMMON_BASE_LOGGING_H_
