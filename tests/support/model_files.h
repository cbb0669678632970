// Where tests find the model files and golden data.
#ifndef KVIST_TESTS_SUPPORT_MODEL_FILES_H_
#define KVIST_TESTS_SUPPORT_MODEL_FILES_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace kvist::testing {

inline constexpr std::string_view kSmolLm2File = "SmolLM2-135M-Instruct.Q4_1.gguf";
inline constexpr std::string_view kGemma3File = "gemma-3-270m-q4_k_m.gguf";

// The path of a model file in $KVIST_MODEL_DIR, or else in
// ${XDG_CACHE_HOME:-$HOME/.cache}/kvist/models. NOT_FOUND, saying how to get it, if it is not
// there: a test must then fail, not pass unseen.
absl::StatusOr<std::string> FindModelFile(std::string_view name);

// The path of a file in tests/golden. Tests run in the root of the sources.
std::string GoldenPath(std::string_view name);

// The lines of a golden file, without empty ones. NOT_FOUND if there is no such file.
absl::StatusOr<std::vector<std::string>> ReadGoldenLines(std::string_view name);

}  // namespace kvist::testing

#endif  // KVIST_TESTS_SUPPORT_MODEL_FILES_H_
