// Chooses the next token from a row of logits: penalties, temperature, top-k, top-p, min-p, one
// random number.
#ifndef KVIST_WORKER_SAMPLING_SAMPLER_H_
#define KVIST_WORKER_SAMPLING_SAMPLER_H_

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/sampling/sampling_options.h"
#include "worker/sampling/token_counts.h"

namespace kvist::worker {

// Whether the options' penalties read the counts at all.
bool NeedsCounts(const SamplingOptions& options);

struct SampleInput {
  std::span<const float> logits;  // [vocab]
  const SamplingOptions& options;
  const TokenCounts* counts = nullptr;  // REQUIRES: set if NeedsCounts(options)
  std::span<const int32_t> masked_ids;  // not chosen (stop ids before min_new_tokens)
  int64_t position = 0;                 // absolute position of the token to choose
};

struct SampleOutput {
  int32_t id = 0;
  // Of log-softmax of the logits as the model gave them; set if options.logprobs >= 0.
  float logprob = 0.0f;
  std::vector<std::pair<int32_t, float>> top_logprobs;  // best first, ties by lower id
};

// A pure function of its input: the same token whatever else is sampled, in whatever order. Sums
// run in ascending id order in double precision with an exponential of its own, so that bits do not
// depend on a math library. Never sorts the vocabulary: order statistics come from a radix descent
// over the bits of the logits. Holds scratch memory of the vocabulary's size. Single-threaded.
class Sampler {
 public:
  // REQUIRES: vocab >= 1.
  explicit Sampler(int64_t vocab);

  // INTERNAL if a logit is NaN or +infinity, or if no token is left to choose. Overwrites `out`.
  // REQUIRES: logits.size() == vocab; options valid; masked ids in range.
  absl::Status Sample(const SampleInput& input, SampleOutput* out);

 private:
  // Values in one chunk of the vocabulary; chunks that hold nothing of interest are skipped by
  // their maximum.
  static constexpr int64_t kChunk = 256;
  // Tokens that rank at or before (value, id): larger logits first, then lower ids.
  struct Cut {
    float value;
    int32_t id;
    bool Keeps(float x, int64_t i) const { return x > value || (x == value && i <= id); }
  };

  // Fills chunk_max_ from x and returns whether all values are numbers below +infinity.
  bool ScanChunks(const float* x);
  float Maximum() const;
  // x with penalties and masks in modified_, or the input's logits where there is nothing to
  // change.
  const float* Modify(const SampleInput& input);
  int32_t ArgMax(const float* x) const;
  // The cut that keeps the k best values. REQUIRES: ScanChunks(x); 1 <= k <= vocab.
  Cut TopKCut(const float* x, int64_t k);
  // The cut at which the mass, taken from the best value on, first reaches `target`, among the
  // values that `within` keeps. mass(i) is the mass of id i.
  template <typename Mass>
  Cut MassCut(const float* x, const Cut& within, double target, Mass mass);
  // weights_[i] = exp((x[i] - maximum) / temperature) for the values that `within` keeps. Returns
  // their sum.
  double Weigh(const float* x, const Cut& within, double inverse_temperature);
  int32_t Draw(const float* x, const SampleInput& input);
  void FillLogprobs(const SampleInput& input, SampleOutput* out);

  int64_t vocab_;
  std::vector<float> modified_;
  std::vector<float> chunk_max_;
  std::vector<float> order_;  // scratch of TopKCut
  std::vector<double> weights_;
  std::vector<double> histogram_;
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_SAMPLING_SAMPLER_H_
