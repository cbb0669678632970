#include "services/runtime/id_syntax.h"

#include <openssl/rand.h>

#include <algorithm>
#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status.h"

namespace kvist::services {

absl::Status CheckId(std::string_view field, std::string_view id, EmptyId empty) {
  if (id.empty() && empty == EmptyId::kRefused) return InvalidField(field, "must not be empty");
  const bool known = std::all_of(id.begin(), id.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
  });
  if (id.size() > kMaxIdBytes || !known) {
    return InvalidField(field, absl::StrCat("must be at most ", kMaxIdBytes, " of [A-Za-z0-9._-]"));
  }
  return absl::OkStatus();
}

std::string DrawId(std::string_view prefix) {
  std::array<unsigned char, 16> bytes;
  KVIST_CHECK(RAND_bytes(bytes.data(), bytes.size()) == 1, "the system has no randomness");
  return absl::StrCat(ToAbsl(prefix),
                      absl::BytesToHexString(absl::string_view(
                          reinterpret_cast<const char*>(bytes.data()), bytes.size())));
}

}  // namespace kvist::services
