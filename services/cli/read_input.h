// A file or standard input as a string.
#ifndef KVIST_SERVICES_CLI_READ_INPUT_H_
#define KVIST_SERVICES_CLI_READ_INPUT_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace kvist::services {

// Text for one command; more is a mistake, as of an endless pipe. A prompt's limit is the server's.
inline constexpr size_t kMaxInputBytes = size_t{64} << 20;

// `path` "-" is standard input. NOT_FOUND if it cannot be opened; OUT_OF_RANGE beyond
// kMaxInputBytes.
absl::StatusOr<std::string> ReadInput(const std::string& path);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CLI_READ_INPUT_H_
