// A tiny model that can chat, made from one of tests/golden/tiny.
#ifndef KVIST_TESTS_SUPPORT_CHAT_MODEL_H_
#define KVIST_TESTS_SUPPORT_CHAT_MODEL_H_

#include <cstdint>
#include <string>

namespace kvist::testing {

// Writes tests/golden/tiny/qwen3_a.Q4_0.gguf, whose vocabulary has the control tokens of ChatML, to
// `path` with a ChatML template and a context of `context_tokens`. The weights are random: so is
// what it says, and it seldom ends by itself. False if a file cannot be read or written.
bool WriteChatModel(const std::string& path, uint32_t context_tokens);

}  // namespace kvist::testing

#endif  // KVIST_TESTS_SUPPORT_CHAT_MODEL_H_
