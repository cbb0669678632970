#include "worker/engine/prompt_lookup.h"

#include <algorithm>
#include <bit>
#include <memory>

#include "common/base/check.h"
#include "common/base/int_math.h"

namespace kvist::worker {
namespace {

// With tables half full at most, one in 100,000 runs meets more strangers than that: it is not
// entered, and a guess is lost. So a prompt that was made to collide costs no more than others.
constexpr size_t kMaxProbes = 64;

uint64_t HashOf(std::span<const int32_t> run) {
  uint64_t hash = run.size();
  for (const int32_t id : run) {
    hash = Mix64(hash * 0x9E3779B97F4A7C15ULL + static_cast<uint64_t>(id));
  }
  return hash;
}

// Half full at most.
size_t TableSize(size_t tokens) { return std::bit_ceil(2 * std::max<size_t>(tokens, 1)); }

}  // namespace

// Not filled with zeros: what is never written takes no memory.
PromptLookup::PromptLookup(size_t max_tokens)
    : max_tokens_(max_tokens),
      ends_(std::make_unique_for_overwrite<int32_t[]>(kLookupLengths * TableSize(max_tokens))) {
  Begin(0);
}

int64_t PromptLookup::memory_bytes() const {
  return static_cast<int64_t>(kLookupLengths * TableSize(max_tokens_) * sizeof(int32_t));
}

void PromptLookup::Begin(size_t tokens) {
  KVIST_CHECK(tokens <= max_tokens_);
  mask_ = TableSize(tokens) - 1;
  indexed_ = 0;
  std::fill_n(ends_.get(), kLookupLengths * (mask_ + 1), 0);
}

int32_t* PromptLookup::Entry(std::span<const int32_t> tokens, size_t end, int length) {
  const size_t size = static_cast<size_t>(length);
  const auto run = tokens.subspan(end - size, size);
  int32_t* const table = &ends_[static_cast<size_t>(length - kLeastLookupLength) * (mask_ + 1)];
  size_t at = HashOf(run) & mask_;
  for (size_t probe = 0; probe < kMaxProbes; ++probe, at = (at + 1) & mask_) {
    if (table[at] == 0) return &table[at];
    const auto other = tokens.subspan(static_cast<size_t>(table[at]) - size, size);
    if (std::equal(run.begin(), run.end(), other.begin())) return &table[at];
  }
  return nullptr;
}

void PromptLookup::Index(std::span<const int32_t> tokens) {
  KVIST_CHECK(2 * tokens.size() <= mask_ + 1);
  for (; indexed_ + 1 < tokens.size(); ++indexed_) {
    const size_t end = indexed_ + 1;
    for (int length = kLeastLookupLength; length <= kMostLookupLength; ++length) {
      if (static_cast<size_t>(length) > end) break;
      if (int32_t* entry = Entry(tokens, end, length)) *entry = static_cast<int32_t>(end);
    }
  }
}

std::optional<LookupMatch> PromptLookup::Find(std::span<const int32_t> tokens) {
  Index(tokens);
  for (int length = kMostLookupLength; length >= kLeastLookupLength; --length) {
    if (static_cast<size_t>(length) > tokens.size()) continue;
    const int32_t* const entry = Entry(tokens, tokens.size(), length);
    if (entry == nullptr || *entry == 0) continue;
    return LookupMatch{.length = length, .place = static_cast<size_t>(*entry)};
  }
  return std::nullopt;
}

}  // namespace kvist::worker
