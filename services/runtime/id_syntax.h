// The spelling of ids that come from peers and users.
#ifndef KVIST_SERVICES_RUNTIME_ID_SYNTAX_H_
#define KVIST_SERVICES_RUNTIME_ID_SYNTAX_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "cache_manager/limits.h"

namespace kvist::services {

using cache_manager::kMaxIdBytes;

// Sessions that a frontend gives to requests without one begin so; no stored session may.
inline constexpr std::string_view kImplicitSessionPrefix = "implicit-";

enum class EmptyId { kAllowed, kRefused };

// INVALID_ARGUMENT naming `field` unless `id` is at most kMaxIdBytes of [A-Za-z0-9._-].
absl::Status CheckId(std::string_view field, std::string_view id, EmptyId empty);
// `prefix` and 32 random hex digits. Thread-safe.
std::string DrawId(std::string_view prefix);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_RUNTIME_ID_SYNTAX_H_
