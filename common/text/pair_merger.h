// The loop at the heart of both BPE algorithms: of all neighbouring pairs that may be joined, join
// the best, until none is left. O(n log n) for n symbols, whatever they are: a heap of candidates
// over a linked list of symbols, where a candidate that an earlier join has overtaken is recognised
// when it comes up.
#ifndef KVIST_COMMON_TEXT_PAIR_MERGER_H_
#define KVIST_COMMON_TEXT_PAIR_MERGER_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace kvist::text {

// A stretch of a word. `id` is a token id, or -1 for none.
struct Symbol {
  size_t begin = 0;  // byte offset in the word
  size_t size_bytes = 0;
  int32_t id = -1;
};

// That two neighbours may be joined to the token `id`; the lowest priority goes first, the leftmost
// of equals.
struct PairMerge {
  double priority = 0;
  int32_t id = -1;
};

// Scratch memory for joining, reused from word to word. Single-threaded.
class PairMerger {
 public:
  void Clear() { nodes_.clear(); }
  // Appends a symbol to the word. REQUIRES: symbol.size_bytes > 0.
  void Add(const Symbol& symbol) { nodes_.push_back({symbol, kNone, kNone}); }

  // Joins pairs until `find(left, right)`, a std::optional<PairMerge>, allows none, and passes the
  // symbols left over, in order, to `emit(symbol)`. At most 3 calls of `find` per symbol.
  template <typename Find, typename Emit>
  void Merge(const Find& find, const Emit& emit) {
    heap_.clear();
    for (size_t i = 0; i < nodes_.size(); ++i) {
      nodes_[i].previous = i == 0 ? kNone : i - 1;
      nodes_[i].next = i + 1 < nodes_.size() ? i + 1 : kNone;
    }
    for (size_t i = 1; i < nodes_.size(); ++i) Propose(i - 1, i, find, /*ordered=*/false);
    std::make_heap(heap_.begin(), heap_.end(), After);
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), After);
      const Candidate best = heap_.back();
      heap_.pop_back();
      if (IsCurrent(best)) Join(best, find);
    }
    for (size_t i = nodes_.empty() ? kNone : 0; i != kNone; i = nodes_[i].next) {
      emit(nodes_[i].symbol);
    }
  }

 private:
  static constexpr size_t kNone = SIZE_MAX;

  struct Node {
    Symbol symbol;  // size_bytes 0: was joined to its left neighbour
    size_t previous;
    size_t next;
  };
  struct Candidate {
    PairMerge merge;
    size_t left;
    size_t right;
    size_t size_bytes;  // of both together when it was proposed: symbols only grow
  };

  static bool After(const Candidate& a, const Candidate& b) {
    if (a.merge.priority != b.merge.priority) return a.merge.priority > b.merge.priority;
    return a.left > b.left;
  }

  bool IsCurrent(const Candidate& c) const {
    const Node& left = nodes_[c.left];
    return left.symbol.size_bytes > 0 && left.next == c.right &&
           left.symbol.size_bytes + nodes_[c.right].symbol.size_bytes == c.size_bytes;
  }

  template <typename Find>
  void Propose(size_t left, size_t right, const Find& find, bool ordered) {
    const Symbol& a = nodes_[left].symbol;
    const Symbol& b = nodes_[right].symbol;
    const std::optional<PairMerge> merge = find(a, b);
    if (!merge) return;
    heap_.push_back({*merge, left, right, a.size_bytes + b.size_bytes});
    if (ordered) std::push_heap(heap_.begin(), heap_.end(), After);
  }

  template <typename Find>
  void Join(const Candidate& c, const Find& find) {
    Node& left = nodes_[c.left];
    Node& right = nodes_[c.right];
    left.symbol.size_bytes = c.size_bytes;
    left.symbol.id = c.merge.id;
    left.next = right.next;
    right.symbol.size_bytes = 0;
    if (left.next != kNone) nodes_[left.next].previous = c.left;
    if (left.previous != kNone) Propose(left.previous, c.left, find, /*ordered=*/true);
    if (left.next != kNone) Propose(c.left, left.next, find, /*ordered=*/true);
  }

  std::vector<Node> nodes_;
  std::vector<Candidate> heap_;
};

}  // namespace kvist::text

#endif  // KVIST_COMMON_TEXT_PAIR_MERGER_H_
