// Invariants:
//   1. blocks_[k].count = number of sessions whose chain holds k; no entry has count 0.
//   2. blocks_[k].number_sum = sum mod 2^64 of those sessions' numbers.
//   3. oldest_first_ lists each session once; held_blocks_ is the sum of the chains' lengths.
#include "services/frontend/implicit_sessions.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace kvist::services {

using cache_manager::BlockKey;

ImplicitSessions::ImplicitSessions(std::string prefix, const Limits& limits)
    : prefix_(std::move(prefix)), limits_(limits) {}

SessionId ImplicitSessions::Begin(std::span<const BlockKey> prompt_keys) {
  uint64_t number = 0;
  Session* session = FindContinued(prompt_keys, &number);
  if (session == nullptr) {
    number = next_number_++;
    session = &sessions_[number];
    session->age = oldest_first_.insert(oldest_first_.end(), number);
  } else {
    oldest_first_.splice(oldest_first_.end(), oldest_first_, session->age);
  }
  session->in_use = true;
  session->prompt_blocks = prompt_keys.size();
  SetChain(number, session, prompt_keys);
  MakeRoom();
  return SessionId(absl::StrCat(prefix_, number));
}

void ImplicitSessions::End(const SessionId& session, std::span<const BlockKey> keys) {
  uint64_t number = 0;
  absl::string_view name = session.value();
  if (!absl::ConsumePrefix(&name, prefix_) || !absl::SimpleAtoi(name, &number)) return;
  const auto found = sessions_.find(number);
  if (found == sessions_.end()) return;
  found->second.in_use = false;
  SetChain(found->first, &found->second, keys);
  MakeRoom();
}

// The deepest known block of the prompt decides. Held by several it is common ground; held by one
// whose last prompt goes on beyond it, the two have parted there.
ImplicitSessions::Session* ImplicitSessions::FindContinued(std::span<const BlockKey> keys,
                                                           uint64_t* number) {
  for (size_t depth = keys.size(); depth > 0; --depth) {
    const auto block = blocks_.find(keys[depth - 1]);
    if (block == blocks_.end()) continue;
    if (block->second.count != 1) return nullptr;
    const auto session = sessions_.find(block->second.number_sum);
    if (session->second.in_use || depth < session->second.prompt_blocks) return nullptr;
    *number = session->first;
    return &session->second;
  }
  return nullptr;
}

void ImplicitSessions::SetChain(uint64_t number, Session* session, std::span<const BlockKey> keys) {
  size_t same = 0;
  const std::vector<BlockKey>& old = session->chain;
  while (same < old.size() && same < keys.size() && old[same] == keys[same]) ++same;
  held_blocks_ = held_blocks_ - old.size() + keys.size();
  for (size_t i = same; i < old.size(); ++i) {
    const auto block = blocks_.find(old[i]);
    block->second.number_sum -= number;
    if (--block->second.count == 0) blocks_.erase(block);
  }
  session->chain.resize(same);
  for (const BlockKey& key : keys.subspan(same)) {
    Holders& holders = blocks_[key];
    ++holders.count;
    holders.number_sum += number;
    session->chain.push_back(key);
  }
}

void ImplicitSessions::Forget(uint64_t number) {
  const auto found = sessions_.find(number);
  SetChain(number, &found->second, {});
  oldest_first_.erase(found->second.age);
  sessions_.erase(found);
}

void ImplicitSessions::MakeRoom() {
  auto next = oldest_first_.begin();
  while ((sessions_.size() > limits_.max_sessions || held_blocks_ > limits_.max_blocks) &&
         next != oldest_first_.end()) {
    const uint64_t number = *next++;
    if (!sessions_.find(number)->second.in_use) Forget(number);
  }
}

absl::Status ImplicitSessions::CheckInvariants() const {
  absl::flat_hash_map<BlockKey, Holders> wanted;
  size_t held = 0;
  for (const auto& [number, session] : sessions_) {
    held += session.chain.size();
    for (const BlockKey& key : session.chain) {
      ++wanted[key].count;
      wanted[key].number_sum += number;
    }
    if (*session.age != number) return absl::InternalError("a session's age names another");
  }
  if (held != held_blocks_) return absl::InternalError("held_blocks_ is no sum of the chains");
  if (oldest_first_.size() != sessions_.size())
    return absl::InternalError("ages and sessions differ");
  if (wanted.size() != blocks_.size()) return absl::InternalError("a block without a holder");
  for (const auto& [key, holders] : wanted) {
    const auto block = blocks_.find(key);
    if (block == blocks_.end() || block->second.count != holders.count ||
        block->second.number_sum != holders.number_sum) {
      return absl::InternalError("a block's holders are wrong");
    }
  }
  return absl::OkStatus();
}

}  // namespace kvist::services
