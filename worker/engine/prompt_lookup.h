// Guesses the next tokens of a sequence from what followed its last ones when they came before
// (prompt lookup decoding, https://github.com/apoorvumang/prompt-lookup-decoding).
#ifndef KVIST_WORKER_ENGINE_PROMPT_LOOKUP_H_
#define KVIST_WORKER_ENGINE_PROMPT_LOOKUP_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

namespace kvist::worker {

// Runs of so many last tokens are looked up, the longest first. One token says too little of the
// next; four that agree are seldom a chance.
inline constexpr int kLeastLookupLength = 2;
inline constexpr int kMostLookupLength = 4;
inline constexpr int kLookupLengths = kMostLookupLength - kLeastLookupLength + 1;

// Where the last tokens came before.
struct LookupMatch {
  int length = 0;    // of the run that agrees
  size_t place = 0;  // of the token that followed it then
};

// Where each run of tokens of one sequence came last: three hash tables, of 24 to 48 bytes a token
// together. Compares the tokens themselves, so a match is never a chance of the hash. O(1) a token.
// The tokens are the caller's: every call gets all of them, and those already seen must not have
// changed. Single-threaded.
class PromptLookup {
 public:
  // Takes address space for a sequence of `max_tokens` tokens: none is taken later. Memory it is
  // once a sequence of that length begins.
  explicit PromptLookup(size_t max_tokens);

  // Of address space. Constant.
  int64_t memory_bytes() const;
  // Forgets its sequence for another, of at most `tokens` tokens. O(tokens). REQUIRES: at most
  // max_tokens.
  void Begin(size_t tokens);
  // The latest earlier place of the longest run that ends `tokens`; nullopt if there is none.
  // REQUIRES: no more than Begin said.
  std::optional<LookupMatch> Find(std::span<const int32_t> tokens);

 private:
  // Enters what is followed by a token.
  void Index(std::span<const int32_t> tokens);
  // The entry of the run that ends before `end`, or the free one that it would get; null if
  // kMaxProbes others are in its way.
  int32_t* Entry(std::span<const int32_t> tokens, size_t end, int length);

  const size_t max_tokens_;
  size_t mask_ = 0;  // of the sequence: a table of it has mask_ + 1 entries
  // By length and hash: where the run ended last; 0: free.
  std::unique_ptr<int32_t[]> ends_;
  size_t indexed_ = 0;  // runs that end at or before it are entered
};

}  // namespace kvist::worker

#endif  // KVIST_WORKER_ENGINE_PROMPT_LOOKUP_H_
