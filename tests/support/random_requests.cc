#include "tests/support/random_requests.h"

#include <iterator>

#include "tests/support/hash_reference.h"

namespace kvist::worker {
namespace {

using Random = std::mt19937_64;

// Few different ones, so that sequences share blocks.
constexpr cache_manager::AttentionSpan kSpans[] = {{16, 0}, {16, 3}, {30, 0}, {48, 20}, {100, 4}};

constexpr Dimension kAnswerDimensions[] = {
    {"sampled", 2,
     [](Random& random, const RequestSpace&, GenerateRequest* r) {
       r->sampling.temperature = 0.9f;
       r->sampling.top_p = 0.95f;
       r->sampling.seed = random();
     }},
    {"top-k and min-p", 6,
     [](Random& random, const RequestSpace&, GenerateRequest* r) {
       r->sampling.top_k = static_cast<int32_t>(1 + random() % 40);
       r->sampling.min_p = 0.02f;
     }},
    {"frequency penalty", 3,
     [](Random&, const RequestSpace&, GenerateRequest* r) {
       r->sampling.frequency_penalty = 0.3f;
     }},
    {"repetition and presence penalty", 6,
     [](Random&, const RequestSpace&, GenerateRequest* r) {
       r->sampling.repetition_penalty = 1.2f;
       r->sampling.presence_penalty = 0.4f;
     }},
    {"log probabilities", 5,
     [](Random& random, const RequestSpace&, GenerateRequest* r) {
       r->sampling.logprobs = static_cast<int32_t>(random() % 4);
     }},
    {"stop ids", 3,
     [](Random& random, const RequestSpace& space, GenerateRequest* r) {
       r->stop.stop_ids = {5};
       // A share of the vocabulary, so that some do come.
       for (uint64_t i = 1; i < space.vocab / 32; ++i) {
         r->stop.stop_ids.push_back(static_cast<int32_t>(random() % space.vocab));
       }
     }},
    {"least length", 4,
     [](Random&, const RequestSpace&, GenerateRequest* r) {
       r->stop.min_new_tokens = r->stop.max_new_tokens / 2;
     }},
    {"window", 3,
     [](Random& random, const RequestSpace&, GenerateRequest* r) {
       r->cache.attention = kSpans[random() % std::size(kSpans)];
     }},
    {"KV format", 2,
     [](Random& random, const RequestSpace& space, GenerateRequest* r) {
       r->cache.kv_format = space.formats[random() % space.formats.size()];
     }},
};

constexpr Dimension kRunDimensions[] = {
    {"no cache", 8,
     [](Random&, const RequestSpace&, GenerateRequest* r) {
       r->cache.allocation = Allocation::kNone;
     }},
    {"static", 4,
     [](Random&, const RequestSpace&, GenerateRequest* r) {
       r->cache.allocation = Allocation::kStatic;
     }},
    {"offload", 1,
     [](Random& random, const RequestSpace& space, GenerateRequest* r) {
       if (!space.disk || r->cache.allocation == Allocation::kNone) return;
       if (random() % 3 != 0) r->cache.offload = OffloadTier::kDisk;
     }},
    {"priority", 4,
     [](Random& random, const RequestSpace&, GenerateRequest* r) {
       r->priority = static_cast<int32_t>(random() % 5) - 2;
     }},
    {"other tenant", 5,
     [](Random&, const RequestSpace&, GenerateRequest* r) { r->tenant_salt = "other"; }},
    {"session", 2,
     [](Random& random, const RequestSpace& space, GenerateRequest* r) {
       r->session = SessionId(Numbered("s", static_cast<int>(random() % space.sessions)));
     }},
};

}  // namespace

std::span<const Dimension> AnswerDimensions() { return kAnswerDimensions; }
std::span<const Dimension> RunDimensions() { return kRunDimensions; }

void DrawDimensions(std::span<const Dimension> dimensions, const RequestSpace& space,
                    std::mt19937_64& random, GenerateRequest* request, std::span<uint64_t> drawn) {
  for (size_t i = 0; i < dimensions.size(); ++i) {
    if (random() % dimensions[i].one_in != 0) continue;
    dimensions[i].draw(random, space, request);
    if (!drawn.empty()) ++drawn[i];
  }
}

}  // namespace kvist::worker
