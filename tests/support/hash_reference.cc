#include "tests/support/hash_reference.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "worker/sampling/sampler.h"

namespace kvist::worker {

std::vector<int32_t> Ids(int64_t n, int32_t salt) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) {
    ids.push_back(static_cast<int32_t>((i * 7 + i * i * 3 + salt * 11 + i * salt) % 64));
  }
  return ids;
}

std::string Numbered(std::string prefix, int number) {
  prefix.append(std::to_string(number));
  return prefix;
}

GenerateRequest RequestOf(const std::string& id, std::vector<int32_t> prompt, int64_t max_new) {
  GenerateRequest request;
  request.id = RequestId(id);
  request.prompt_ids = std::move(prompt);
  request.stop.max_new_tokens = max_new;
  return request;
}

std::vector<int32_t> ByDefinition(const HashBackendOptions& options,
                                  const GenerateRequest& request) {
  Sampler sampler(options.vocab);
  TokenCounts counts;
  counts.AddPrompt(request.prompt_ids);
  HashSequence sequence(options, request.cache.kv_format.value_or(KvFormat::kF16),
                        request.cache.attention);
  for (const int32_t id : request.prompt_ids) sequence.Append(id);
  const std::vector<int32_t>& stops = request.stop.stop_ids;
  const std::vector<int32_t> none;
  std::vector<int32_t> ids;
  while (static_cast<int64_t>(ids.size()) < request.stop.max_new_tokens) {
    const std::vector<float> logits = sequence.Logits();
    const bool masked = static_cast<int64_t>(ids.size()) < request.stop.min_new_tokens;
    SampleOutput out;
    const absl::Status status =
        sampler.Sample({.logits = logits,
                        .options = request.sampling,
                        .counts = &counts,
                        .masked_ids = masked ? stops : none,
                        .position = static_cast<int64_t>(request.prompt_ids.size() + ids.size())},
                       &out);
    KVIST_CHECK(status.ok());
    ids.push_back(out.id);
    sequence.Append(out.id);
    counts.AddOutput(out.id);
    if (std::find(stops.begin(), stops.end(), out.id) != stops.end()) break;
  }
  return ids;
}

}  // namespace kvist::worker
