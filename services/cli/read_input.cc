#include "services/cli/read_input.h"

#include <fstream>
#include <iostream>

#include "absl/strings/str_cat.h"

namespace kvist::services {
namespace {

absl::StatusOr<std::string> ReadAll(std::istream& in, const std::string& name) {
  std::string text;
  char chunk[65536];
  while (in.read(chunk, sizeof(chunk)) || in.gcount() > 0) {
    text.append(chunk, static_cast<size_t>(in.gcount()));
    if (text.size() > kMaxInputBytes) {
      return absl::OutOfRangeError(
          absl::StrCat(name, ": more than ", kMaxInputBytes >> 20, " MiB"));
    }
  }
  return text;
}

}  // namespace

absl::StatusOr<std::string> ReadInput(const std::string& path) {
  if (path == "-") return ReadAll(std::cin, "standard input");
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  return ReadAll(file, path);
}

}  // namespace kvist::services
