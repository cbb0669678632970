// Requests for the hash backend and their answers by definition.
#ifndef KVIST_TESTS_SUPPORT_HASH_REFERENCE_H_
#define KVIST_TESTS_SUPPORT_HASH_REFERENCE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/hash_backend.h"
#include "worker/engine/request.h"

namespace kvist::worker {

// n ids below 64 that depend on `salt`.
std::vector<int32_t> Ids(int64_t n, int32_t salt);
// "r" and 7 give "r7".
std::string Numbered(std::string prefix, int number);
// A greedy request with that prompt.
GenerateRequest RequestOf(const std::string& id, std::vector<int32_t> prompt, int64_t max_new);
// What the model answers, token after token, without engine, blocks or batches. The request's own
// span and format, or f16.
std::vector<int32_t> ByDefinition(const HashBackendOptions& options,
                                  const GenerateRequest& request);

}  // namespace kvist::worker

#endif  // KVIST_TESTS_SUPPORT_HASH_REFERENCE_H_
