#include "tests/support/model_files.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace kvist::testing {
namespace {

std::filesystem::path ModelFolder() {
  if (const char* folder = std::getenv("KVIST_MODEL_DIR")) return folder;
  if (const char* cache = std::getenv("XDG_CACHE_HOME")) {
    return std::filesystem::path(cache) / "kvist" / "models";
  }
  const char* home = std::getenv("HOME");
  return std::filesystem::path(home == nullptr ? "/root" : home) / ".cache" / "kvist" / "models";
}

}  // namespace

absl::StatusOr<std::string> FindModelFile(std::string_view name) {
  const std::filesystem::path path = ModelFolder() / name;
  if (!std::filesystem::is_regular_file(path)) {
    return absl::NotFoundError(absl::StrCat("the model file ", path.string(),
                                            " is missing: tests/run.sh downloads it, or set "
                                            "KVIST_MODEL_DIR to the folder that has it"));
  }
  return path.string();
}

std::string GoldenPath(std::string_view name) {
  return absl::StrCat("tests/golden/", ToAbsl(name));
}

absl::StatusOr<std::vector<std::string>> ReadGoldenLines(std::string_view name) {
  std::ifstream file(GoldenPath(name));
  if (!file) {
    return absl::NotFoundError(
        absl::StrCat(GoldenPath(name), " is missing: run tests in the root of the sources"));
  }
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty()) lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace kvist::testing
