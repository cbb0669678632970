// Addresses of listening sockets: "host:port", "[::1]:port".
#ifndef KVIST_SERVICES_RUNTIME_ADDRESS_H_
#define KVIST_SERVICES_RUNTIME_ADDRESS_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace kvist::services {

struct HostPort {
  std::string host;  // without brackets
  uint16_t port = 0;

  // "host:port", with brackets around an IPv6 host.
  std::string ToString() const;
};

// INVALID_ARGUMENT naming `flag` if `address` is no "host:port" with a port of 0 .. 65535.
absl::StatusOr<HostPort> ParseHostPort(std::string_view address, std::string_view flag);
// 127.0.0.0/8, ::1 and "localhost".
bool IsLoopback(const HostPort& address);
// As ParseHostPort; also INVALID_ARGUMENT for an address that others could reach unless `insecure`.
absl::StatusOr<HostPort> ParseListenAddress(std::string_view address, std::string_view flag,
                                            bool insecure);

}  // namespace kvist::services

#endif  // KVIST_SERVICES_RUNTIME_ADDRESS_H_
