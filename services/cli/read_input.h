// A file or standard input as a string.
#ifndef KVIST_SERVICES_CLI_READ_INPUT_H_
#define KVIST_SERVICES_CLI_READ_INPUT_H_

#include <string>

#include "absl/status/statusor.h"

namespace kvist::services {

// `path` "-" is standard input. NOT_FOUND if it cannot be opened; OUT_OF_RANGE beyond 64 MiB.
absl::StatusOr<std::string> ReadInput(const std::string& path);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_CLI_READ_INPUT_H_
