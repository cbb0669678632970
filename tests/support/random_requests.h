// Random requests of every kind, for tests that run many at once and hold each answer against the
// same request's alone. A new kind of request is a row of one of the two tables.
#ifndef KVIST_TESTS_SUPPORT_RANDOM_REQUESTS_H_
#define KVIST_TESTS_SUPPORT_RANDOM_REQUESTS_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "worker/engine/request.h"

namespace kvist::worker {

// Where requests are drawn from.
struct RequestSpace {
  uint64_t vocab = 64;
  std::vector<KvFormat> formats = {KvFormat::kF16};  // served
  uint64_t sessions = 20;
  bool disk = false;  // there is one to offload to
};

// One way in which requests differ.
struct Dimension {
  const char* name;
  uint64_t one_in;  // so seldom does a request have it
  void (*draw)(std::mt19937_64& random, const RequestSpace& space, GenerateRequest* request);
};

// What decides the answer: sampling, stops, what attention sees, how KV is stored.
std::span<const Dimension> AnswerDimensions();
// What must not change it: how blocks are had and shared, who waits for whom.
std::span<const Dimension> RunDimensions();

// Draws each dimension or leaves it; counts those drawn in `drawn`, of as many entries, if given.
void DrawDimensions(std::span<const Dimension> dimensions, const RequestSpace& space,
                    std::mt19937_64& random, GenerateRequest* request,
                    std::span<uint64_t> drawn = {});

}  // namespace kvist::worker

#endif  // KVIST_TESTS_SUPPORT_RANDOM_REQUESTS_H_
