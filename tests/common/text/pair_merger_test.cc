#include "common/text/pair_merger.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

namespace kvist::text {
namespace {

// Rules over single letters: "ab" -> what a and b become, with a priority.
using Rules = std::map<std::pair<int32_t, int32_t>, PairMerge>;

std::vector<int32_t> MergeFast(const std::vector<int32_t>& ids, const Rules& rules,
                               size_t* finds = nullptr) {
  PairMerger merger;
  for (size_t i = 0; i < ids.size(); ++i) {
    merger.Add({.begin = i, .size_bytes = 1, .id = ids[i]});
  }
  std::vector<int32_t> result;
  const auto find = [&](const Symbol& left, const Symbol& right) -> std::optional<PairMerge> {
    if (finds != nullptr) ++*finds;
    const auto found = rules.find({left.id, right.id});
    if (found == rules.end()) return std::nullopt;
    return found->second;
  };
  merger.Merge(find, [&](const Symbol& symbol) { result.push_back(symbol.id); });
  return result;
}

// The definition: look at all pairs, join the best one, again.
std::vector<int32_t> MergeNaively(std::vector<int32_t> ids, const Rules& rules) {
  while (true) {
    const PairMerge* best = nullptr;
    size_t at = 0;
    for (size_t i = 1; i < ids.size(); ++i) {
      const auto found = rules.find({ids[i - 1], ids[i]});
      if (found == rules.end()) continue;
      if (best == nullptr || found->second.priority < best->priority) {
        best = &found->second;
        at = i;
      }
    }
    if (best == nullptr) return ids;
    ids[at - 1] = best->id;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at));
  }
}

TEST(PairMerger, EqualsTheNaiveDefinitionOnRandomRules) {
  uint64_t state = 3;
  const auto next = [&state](uint64_t limit) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<int32_t>((state >> 33) % limit);
  };
  for (int round = 0; round < 3000; ++round) {
    Rules rules;
    for (int i = 0; i < 12; ++i) {
      // Few priorities, so that many pairs are equally good and the leftmost must win.
      rules[{next(6), next(6)}] = {.priority = static_cast<double>(next(4)), .id = next(6)};
    }
    std::vector<int32_t> ids(1 + static_cast<size_t>(next(30)));
    for (int32_t& id : ids) id = next(6);
    ASSERT_EQ(MergeFast(ids, rules), MergeNaively(ids, rules)) << "round " << round;
  }
}

TEST(PairMerger, LooksAtEachPairAFixedNumberOfTimes) {
  // Doubling: a+a -> b, b+b -> c, ... as the run-length pieces of real vocabularies.
  Rules rules;
  for (int32_t id = 0; id < 30; ++id) {
    rules[{id, id}] = {.priority = static_cast<double>(id), .id = id + 1};
  }
  for (const size_t size : {size_t{1000}, size_t{100'000}, size_t{1'000'000}}) {
    size_t finds = 0;
    const auto result = MergeFast(std::vector<int32_t>(size, 0), rules, &finds);
    EXPECT_LE(finds, 3 * size);
    EXPECT_LE(result.size(), 20);
  }
}

TEST(PairMerger, AWordOfNoneOrOneSymbolIsLeftAlone) {
  EXPECT_EQ(MergeFast({}, {}), std::vector<int32_t>{});
  EXPECT_EQ(MergeFast({5}, {}), std::vector<int32_t>{5});
}

}  // namespace
}  // namespace kvist::text
