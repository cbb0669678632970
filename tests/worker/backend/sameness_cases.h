// The sameness test's way of running a token sequence: cut, mixed and placed at random, on any
// backend.
#ifndef KVIST_TESTS_WORKER_BACKEND_SAMENESS_CASES_H_
#define KVIST_TESTS_WORKER_BACKEND_SAMENESS_CASES_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "tests/support/tiny_model.h"
#include "worker/backend/backend.h"

namespace kvist::testing {

using LogitRows = std::vector<std::vector<float>>;

// Random ids of the backend's vocabulary.
inline std::vector<int32_t> RandomTokens(const worker::Backend& backend, size_t count,
                                         std::mt19937_64& random) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) {
    token = static_cast<int32_t>(random() % static_cast<uint64_t>(backend.model().vocab));
  }
  return tokens;
}

// Logits after every token of `tokens`, alone and a token at a time: what everything is compared
// with.
inline LogitRows RunTokenByToken(worker::Backend& backend, const std::vector<int32_t>& tokens,
                                 worker::KvFormat format,
                                 const cache_manager::AttentionSpan& attention = {}) {
  BlockSource blocks(backend);
  TestSequence sequence(backend, blocks, format, attention);
  LogitRows rows;
  for (const int32_t& token : tokens) rows.push_back(sequence.Run({&token, 1}, 1)[0]);
  return rows;
}

// Logits after every token, in chunks of random sizes up to `most`.
inline LogitRows RunInChunks(worker::Backend& backend, const std::vector<int32_t>& tokens,
                             worker::KvFormat format, size_t most, std::mt19937_64& random,
                             const cache_manager::AttentionSpan& attention = {}) {
  BlockSource blocks(backend, random() | 1);
  TestSequence sequence(backend, blocks, format, attention);
  LogitRows rows;
  for (size_t begin = 0; begin < tokens.size();) {
    const size_t count = std::min<size_t>(tokens.size() - begin, 1 + random() % most);
    for (auto& row : sequence.Run({tokens.data() + begin, count}, static_cast<int64_t>(count))) {
      rows.push_back(std::move(row));
    }
    begin += count;
  }
  return rows;
}

// Runs all sequences at once: every step takes a random number of tokens of a random set of them,
// in random order; logits after every token of each.
inline std::vector<LogitRows> RunMixed(worker::Backend& backend,
                                       const std::vector<std::vector<int32_t>>& sequences,
                                       worker::KvFormat format, std::mt19937_64& random) {
  BlockSource blocks(backend, random() | 1);
  std::vector<std::unique_ptr<TestSequence>> running;
  for (size_t i = 0; i < sequences.size(); ++i) {
    running.push_back(std::make_unique<TestSequence>(backend, blocks, format));
  }
  std::vector<LogitRows> result(sequences.size());
  std::vector<size_t> order(sequences.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (;;) {
    std::shuffle(order.begin(), order.end(), random);
    worker::Batch batch;
    std::vector<std::pair<size_t, size_t>> taken;  // sequence, tokens
    for (const size_t i : order) {
      const size_t begin = static_cast<size_t>(running[i]->position());
      const size_t left = sequences[i].size() - begin;
      if (left == 0 || random() % 4 == 0) continue;
      const size_t most = random() % 3 == 0 ? 64 : 3;
      const size_t count = std::min<size_t>(left, 1 + random() % most);
      batch.slices.push_back(
          running[i]->Append({sequences[i].data() + begin, count}, static_cast<int64_t>(count)));
      taken.push_back({i, count});
    }
    size_t row = 0;
    LogitRows rows = RunBatch(backend, batch);
    for (const auto& [i, count] : taken) {
      for (size_t k = 0; k < count; ++k) result[i].push_back(std::move(rows[row++]));
    }
    bool done = true;
    for (size_t i = 0; i < sequences.size(); ++i) {
      done = done && static_cast<size_t>(running[i]->position()) == sequences[i].size();
    }
    if (done) return result;
  }
}

}  // namespace kvist::testing

#endif  // KVIST_TESTS_WORKER_BACKEND_SAMENESS_CASES_H_
