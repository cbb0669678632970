#include "services/runtime/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <charconv>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace kvist::services {
namespace {

constexpr size_t kMaxHostBytes = 253;  // RFC 1035

bool IsIpv6(const std::string& host) { return host.find(':') != std::string::npos; }

}  // namespace

std::string HostPort::ToString() const {
  return IsIpv6(host) ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

absl::StatusOr<HostPort> ParseHostPort(std::string_view address, std::string_view flag) {
  const absl::Status malformed = InvalidField(
      flag, absl::StrCat("'", ToAbsl(address.substr(0, kMaxHostBytes)), "' is not host:port"));
  const size_t colon = address.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return malformed;
  HostPort result;
  std::string_view host = address.substr(0, colon);
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) host = host.substr(1, host.size() - 2);
  result.host = std::string(host);
  if (result.host.size() > kMaxHostBytes || IsIpv6(result.host) != bracketed) return malformed;
  const std::string_view port = address.substr(colon + 1);
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), result.port);
  if (error != std::errc() || end != port.data() + port.size()) return malformed;
  return result;
}

bool IsLoopback(const HostPort& address) {
  if (address.host == "localhost") return true;
  in_addr v4;
  if (inet_pton(AF_INET, address.host.c_str(), &v4) == 1) {
    return (ntohl(v4.s_addr) >> 24) == 127;
  }
  in6_addr v6;
  return inet_pton(AF_INET6, address.host.c_str(), &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

absl::StatusOr<HostPort> ParseListenAddress(std::string_view address, std::string_view flag,
                                            bool insecure) {
  KVIST_ASSIGN_OR_RETURN(HostPort parsed, ParseHostPort(address, flag));
  if (!insecure && !IsLoopback(parsed)) {
    return InvalidField(flag, absl::StrCat("'", ToAbsl(address),
                                           "' can be reached by others and there is no "
                                           "TLS: use a loopback address or give --insecure"));
  }
  return parsed;
}

}  // namespace kvist::services
