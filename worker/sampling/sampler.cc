#include "worker/sampling/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "common/base/check.h"
#include "common/base/int_math.h"
#include "worker/sampling/exponential.h"
#include "worker/sampling/philox.h"

namespace kvist::worker {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// The float's bits as an unsigned number with the reverse order: the largest value has the smallest
// key. Both zeros are equal.
uint32_t DescendingKey(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x == 0.0f ? 0.0f : x);
  const uint32_t ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return ~ascending;
}

float FromDescendingKey(uint32_t key) {
  const uint32_t ascending = ~key;
  return std::bit_cast<float>((ascending & 0x80000000u) != 0 ? ascending & 0x7fffffffu
                                                             : ~ascending);
}

// The radix descent looks at 11, 11 and 10 bits of the key in turn.
struct Digit {
  int shift;
  int bits;
};
constexpr Digit kDigits[] = {{21, 11}, {10, 11}, {0, 10}};
constexpr size_t kHistogramSize = size_t{1} << 11;

}  // namespace

bool NeedsCounts(const SamplingOptions& options) {
  return options.repetition_penalty != 1.0f || options.presence_penalty != 0.0f ||
         options.frequency_penalty != 0.0f;
}

Sampler::Sampler(int64_t vocab)
    : vocab_(vocab),
      modified_(static_cast<size_t>(vocab)),
      chunk_max_(static_cast<size_t>(CeilDiv(vocab, kChunk))),
      order_(chunk_max_.size()),
      weights_(static_cast<size_t>(vocab)),
      histogram_(kHistogramSize) {
  KVIST_CHECK(vocab >= 1);
}

bool Sampler::ScanChunks(const float* x) {
  constexpr int64_t kLanes = 16;
  bool numbers = true;
  for (size_t c = 0; c < chunk_max_.size(); ++c) {
    const int64_t begin = static_cast<int64_t>(c) * kChunk;
    const int64_t n = std::min(kChunk, vocab_ - begin);
    float lanes[kLanes];
    int32_t bad[kLanes] = {};
    std::fill(lanes, lanes + kLanes, kMinusInfinity);
    const float* chunk = x + begin;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const float value = chunk[i + lane];
        lanes[lane] = value > lanes[lane] ? value : lanes[lane];
        bad[lane] |= value != value ? 1 : 0;
      }
    }
    for (; i < n; ++i) {
      lanes[0] = chunk[i] > lanes[0] ? chunk[i] : lanes[0];
      bad[0] |= chunk[i] != chunk[i] ? 1 : 0;
    }
    chunk_max_[c] = *std::max_element(lanes, lanes + kLanes);
    for (const int32_t flag : bad) numbers = numbers && flag == 0;
    numbers = numbers && chunk_max_[c] < std::numeric_limits<float>::infinity();
  }
  return numbers;
}

float Sampler::Maximum() const { return *std::max_element(chunk_max_.begin(), chunk_max_.end()); }

const float* Sampler::Modify(const SampleInput& input) {
  const bool penalties = NeedsCounts(input.options);
  if (!penalties && input.masked_ids.empty()) return input.logits.data();
  std::copy(input.logits.begin(), input.logits.end(), modified_.begin());
  if (penalties) {
    const SamplingOptions& options = input.options;
    for (const auto& [id, count] : input.counts->map()) {
      float& x = modified_[static_cast<size_t>(id)];
      if (!std::isfinite(x)) continue;
      x = x > 0.0f ? x / options.repetition_penalty : x * options.repetition_penalty;
      if (count > 0) {
        x -= options.presence_penalty + options.frequency_penalty * static_cast<float>(count);
      }
      // A tiny repetition penalty must not make a number infinite.
      x = std::clamp(x, std::numeric_limits<float>::lowest(), std::numeric_limits<float>::max());
    }
  }
  for (const int32_t id : input.masked_ids) modified_[static_cast<size_t>(id)] = kMinusInfinity;
  return modified_.data();
}

int32_t Sampler::ArgMax(const float* x) const {
  const auto best = std::max_element(chunk_max_.begin(), chunk_max_.end());
  const int64_t begin = (best - chunk_max_.begin()) * kChunk;
  const float* end = x + std::min(begin + kChunk, vocab_);
  return static_cast<int32_t>(std::find(x + begin, end, *best) - x);
}

template <typename Mass>
Sampler::Cut Sampler::MassCut(const float* x, const Cut& within, double target, Mass mass) {
  uint32_t prefix = 0;
  uint32_t prefix_mask = 0;
  double before = 0.0;  // mass of all values ranked before those that share the prefix
  auto for_each = [&](auto visit) {
    for (size_t c = 0; c < chunk_max_.size(); ++c) {
      if (chunk_max_[c] < within.value) continue;
      const int64_t end = std::min((static_cast<int64_t>(c) + 1) * kChunk, vocab_);
      for (int64_t i = static_cast<int64_t>(c) * kChunk; i < end; ++i) {
        if (!within.Keeps(x[i], i)) continue;
        const uint32_t key = DescendingKey(x[i]);
        if ((key & prefix_mask) == prefix) visit(i, key);
      }
    }
  };
  for (const Digit& digit : kDigits) {
    const uint32_t low_mask = (uint32_t{1} << digit.bits) - 1;
    std::fill(histogram_.begin(), histogram_.end(), 0.0);
    for_each(
        [&](int64_t i, uint32_t key) { histogram_[(key >> digit.shift) & low_mask] += mass(i); });
    size_t bucket = 0;
    size_t last =
        0;  // of the buckets with mass: where rounding ends up if it never reaches the target
    double sum = before;
    for (; bucket <= low_mask; ++bucket) {
      if (histogram_[bucket] == 0.0) continue;
      last = bucket;
      if (sum + histogram_[bucket] >= target) break;
      sum += histogram_[bucket];
    }
    if (bucket > low_mask) {
      bucket = last;
      sum -= histogram_[bucket];
    }
    before = sum;
    prefix |= static_cast<uint32_t>(bucket) << digit.shift;
    prefix_mask |= low_mask << digit.shift;
  }
  int32_t cut_id = -1;
  bool reached = false;
  for_each([&](int64_t i, uint32_t) {
    if (reached) return;
    cut_id = static_cast<int32_t>(i);
    before += mass(i);
    reached = before >= target;
  });
  return Cut{FromDescendingKey(prefix), cut_id};
}

Sampler::Cut Sampler::TopKCut(const float* x, int64_t k) {
  // The k-th largest chunk maximum bounds the k-th largest value from below: most chunks need no
  // look.
  Cut within{kMinusInfinity, std::numeric_limits<int32_t>::max()};
  if (k <= static_cast<int64_t>(chunk_max_.size())) {
    order_ = chunk_max_;
    std::nth_element(order_.begin(), order_.begin() + (k - 1), order_.end(), std::greater<>());
    within.value = order_[static_cast<size_t>(k - 1)];
  }
  return MassCut(x, within, static_cast<double>(k), [](int64_t) { return 1.0; });
}

double Sampler::Weigh(const float* x, const Cut& within, double inverse_temperature) {
  const double maximum = Maximum();
  double total = 0.0;
  for (size_t c = 0; c < chunk_max_.size(); ++c) {
    if (chunk_max_[c] < within.value) continue;
    const int64_t end = std::min((static_cast<int64_t>(c) + 1) * kChunk, vocab_);
    for (int64_t i = static_cast<int64_t>(c) * kChunk; i < end; ++i) {
      double& weight = weights_[static_cast<size_t>(i)];
      weight = 0.0;
      if (!within.Keeps(x[i], i)) continue;
      weight = ExpOfNonPositive((static_cast<double>(x[i]) - maximum) * inverse_temperature);
      total += weight;
    }
  }
  return total;
}

int32_t Sampler::Draw(const float* x, const SampleInput& input) {
  const SamplingOptions& options = input.options;
  const double inverse_temperature = 1.0 / static_cast<double>(options.temperature);
  Cut cut{kMinusInfinity, std::numeric_limits<int32_t>::max()};
  if (options.top_k > 0 && options.top_k < vocab_) cut = TopKCut(x, options.top_k);
  double total = Weigh(x, cut, inverse_temperature);
  auto weight = [this](int64_t i) { return weights_[static_cast<size_t>(i)]; };
  if (options.top_p < 1.0f) cut = MassCut(x, cut, total * options.top_p, weight);
  // The most probable token has the weight 1, so min_p compares with the weights themselves.
  const double least = options.min_p;
  auto visit_kept = [&](auto visit) {
    for (size_t c = 0; c < chunk_max_.size(); ++c) {
      if (chunk_max_[c] < cut.value) continue;
      const int64_t end = std::min((static_cast<int64_t>(c) + 1) * kChunk, vocab_);
      for (int64_t i = static_cast<int64_t>(c) * kChunk; i < end; ++i) {
        const double w = weight(i);
        if (w > 0.0 && w >= least && cut.Keeps(x[i], i) && !visit(i, w)) return;
      }
    }
  };
  if (options.top_p < 1.0f || options.min_p > 0.0f) {
    total = 0.0;
    visit_kept([&](int64_t, double w) {
      total += w;
      return true;
    });
  }
  const double target = total * UniformAt({.seed = options.seed,
                                           .sample_index = options.sample_index,
                                           .position = input.position});
  double sum = 0.0;
  int32_t chosen = 0;
  visit_kept([&](int64_t i, double w) {
    chosen = static_cast<int32_t>(i);
    sum += w;
    return sum <= target;
  });
  return chosen;
}

// REQUIRES: chunk_max_ belongs to the input's logits.
void Sampler::FillLogprobs(const SampleInput& input, SampleOutput* out) {
  const float* x = input.logits.data();
  const Cut all{kMinusInfinity, std::numeric_limits<int32_t>::max()};
  const double maximum = Maximum();
  const double log_total = std::log(Weigh(x, all, 1.0));
  auto logprob = [&](int64_t i) {
    return static_cast<float>((static_cast<double>(x[i]) - maximum) - log_total);
  };
  out->logprob = logprob(out->id);
  const int64_t top = std::min<int64_t>(input.options.logprobs, vocab_);
  if (top <= 0) return;
  const Cut cut = TopKCut(x, top);
  for (size_t c = 0; c < chunk_max_.size(); ++c) {
    if (chunk_max_[c] < cut.value) continue;
    const int64_t end = std::min((static_cast<int64_t>(c) + 1) * kChunk, vocab_);
    for (int64_t i = static_cast<int64_t>(c) * kChunk; i < end; ++i) {
      if (cut.Keeps(x[i], i)) out->top_logprobs.emplace_back(static_cast<int32_t>(i), logprob(i));
    }
  }
  std::sort(out->top_logprobs.begin(), out->top_logprobs.end(), [x](const auto& a, const auto& b) {
    return x[a.first] != x[b.first] ? x[a.first] > x[b.first] : a.first < b.first;
  });
}

absl::Status Sampler::Sample(const SampleInput& input, SampleOutput* out) {
  KVIST_CHECK(static_cast<int64_t>(input.logits.size()) == vocab_);
  out->logprob = 0.0f;
  out->top_logprobs.clear();
  const float* x = Modify(input);
  if (!ScanChunks(x)) return absl::InternalError("the model gave a logit that is not a number");
  if (Maximum() == kMinusInfinity) return absl::InternalError("no token is left to choose from");
  out->id = input.options.temperature == 0.0f ? ArgMax(x) : Draw(x, input);
  if (input.options.logprobs < 0) return absl::OkStatus();
  if (x != input.logits.data() && !ScanChunks(input.logits.data())) {
    return absl::InternalError("the model gave a logit that is not a number");
  }
  FillLogprobs(input, out);
  return absl::OkStatus();
}

}  // namespace kvist::worker
