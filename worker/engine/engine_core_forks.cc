// Several samples of one prompt: the first request computes it, the others follow it without being
// scheduled. Once the prompt is stored, they take references to its blocks and draw their first
// token from the same logits; who then writes to the last, partial block copies it first.
#include <algorithm>
#include <utility>

#include "worker/engine/engine_core.h"

namespace kvist::worker {
namespace {

// Whether both would store the same for the prompt, under the same names.
bool HaveSamePrompt(const LiveRequest& a, const LiveRequest& b) {
  return a.format == b.format && a.request.cache.allocation == b.request.cache.allocation &&
         a.request.cache.attention == b.request.cache.attention &&
         a.request.tenant_salt == b.request.tenant_salt &&
         a.request.prompt_ids == b.request.prompt_ids;
}

}  // namespace

LiveRequest* EngineCore::SiblingOf(const LiveRequest& live) const {
  if (live.request.fork_of.empty()) return nullptr;
  const auto found = live_.find(live.request.fork_of);
  if (found == live_.end() || found->second.get() == &live) return nullptr;
  LiveRequest& sibling = *found->second;
  return HaveSamePrompt(live, sibling) ? &sibling : nullptr;
}

bool EngineCore::Follow(LiveRequest& live) {
  LiveRequest* leader = SiblingOf(live);
  if (leader != nullptr && leader->leader != nullptr) leader = leader->leader;
  if (leader == nullptr || leader == &live || leader->has_prompt()) return false;
  // Without a cache there is nothing to share but the first token's logits.
  if (!live.caches() && (live.generated_tokens() > 0 || leader->generated_tokens() > 0)) {
    return false;
  }
  live.leader = leader;
  live.rank = leader->rank;
  leader->followers.push_back(&live);
  ++followers_;
  return true;
}

void EngineCore::LetFollowersGo(LiveRequest& leader, const Logits& logits) {
  followers_ -= leader.followers.size();
  // Logits of the prompt's last token, and not of one that was generated.
  const bool at_prompt = logits.rows > 0 && leader.generated_tokens() == 0;
  for (LiveRequest* live : std::exchange(leader.followers, {})) {
    live->leader = nullptr;
    if (at_prompt && live->generated_tokens() == 0) {
      ForkFrom(leader, logits, *live);
    } else {
      scheduler_.AddInRank(live);
    }
  }
}

void EngineCore::ForkFrom(const LiveRequest& leader, const Logits& logits, LiveRequest& live) {
  live.first_scheduled = std::max(live.queued, *leader.first_scheduled);
  --unscheduled_;
  ++stats_.forks;
  if (live.caches()) {
    live.cached_tokens = live.prompt_tokens();
    stats_.prefix_tokens_asked += static_cast<uint64_t>(live.prompt_tokens());
    stats_.prefix_tokens_hit += static_cast<uint64_t>(live.cached_tokens);
    live.blocks.Fork(leader.blocks);
    live.stored_tokens = live.blocks.stored_tokens();
  }
  // As at an admission: a spare block for each running sequence.
  const int64_t spare = static_cast<int64_t>(scheduler_.running().size());
  bool runs = scheduler_.HasPlaceFor(live);
  if (runs && !live.preemptible) {
    runs = live.blocks.Reserve(MostStoredTokens(live.request), spare);
  } else if (runs) {
    runs = live.blocks.Fits(live.known_tokens + 1, spare);
  }
  if (live.in_session()) {
    live.member = {live.request.session, live.request.tenant, &live.format->pools, {}, {}};
    session_holds_.Begin(live.member, live.blocks);
  }
  if (!runs) {
    live.blocks.Release(live.tokens);
    live.stored_tokens = 0;
    if (live.in_session()) session_holds_.Pause(live.member);
  }
  const RequestId id = live.request.id;
  TakeTokens(ScheduledChunk(), logits, live);
  if (!live_.contains(id)) return;  // that was its last token
  if (runs) {
    scheduler_.Join(&live);
  } else {
    scheduler_.AddInRank(&live);
  }
}

void EngineCore::LeaveSiblings(LiveRequest& live) {
  if (live.leader != nullptr) {
    std::erase(live.leader->followers, &live);
    live.leader = nullptr;
    --followers_;
  }
  if (live.followers.empty()) return;
  // The next one computes the prompt for the others.
  LiveRequest* next = live.followers.front();
  next->followers.assign(live.followers.begin() + 1, live.followers.end());
  for (LiveRequest* follower : next->followers) follower->leader = next;
  live.followers.clear();
  next->leader = nullptr;
  --followers_;
  scheduler_.AddInRank(next);
}

}  // namespace kvist::worker
