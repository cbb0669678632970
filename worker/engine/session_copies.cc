#include "worker/engine/session_copies.h"

#include <algorithm>
#include <string>
#include <utility>

#include "cache_manager/attention_span.h"
#include "cache_manager/block_key.h"
#include "cache_manager/limits.h"
#include "common/base/check.h"
#include "common/base/int_math.h"
#include "common/base/status.h"

namespace kvist::worker {

using cache_manager::BlockKey;
using cache_manager::BlockPool;
using cache_manager::BlockRef;
using cache_manager::PartialMatch;
using cache_manager::PoolIndex;
using cache_manager::Reservation;
using cache_manager::SessionPhase;

namespace {

// Advice to who found kMaxSessionCopies under way: most last a few seconds.
constexpr int64_t kRetryMs = 1'000;

// A promise of each layer group's pool. `held`: the copy has the blocks already.
absl::StatusOr<std::vector<Reservation>> Promise(const FormatCache& format,
                                                 const std::vector<int64_t>& blocks, bool held) {
  std::vector<Reservation> promises;
  for (size_t g = 0; g < blocks.size(); ++g) {
    BlockPool& pool = *format.cache.groups()[g].pool;
    if (blocks[g] > pool.MaxPromised()) {
      return absl::ResourceExhaustedError(
          "the snapshot has " + std::to_string(blocks[g]) + " blocks of a layer group; at most " +
          std::to_string(pool.MaxPromised()) + " of the KV memory here may be promised");
    }
    const auto count = static_cast<int32_t>(blocks[g]);
    auto promise = pool.Reserve({.blocks = count, .held = held ? count : 0});
    if (!promise.ok()) {
      return Overloaded("the KV memory is in use or promised to others now", kRetryMs);
    }
    promises.push_back(*std::move(promise));
  }
  return promises;
}

}  // namespace

// A block that is held, and where it belongs.
struct SessionCopies::Held {
  BlockPlace place;
  BlockRef ref;
};

struct SessionCopies::Copy {
  FormatCache* format = nullptr;
  int64_t tokens = 0;
  std::vector<Held> held;
  std::vector<Reservation> promises;  // by layer group
  // Of an import:
  SessionHistory history;
  std::vector<BlockKey> keys;  // of the full blocks, behind the root
  size_t announced = 0;        // blocks that must come
  size_t named = 0;            // leading ones of `held`

  ~Copy() {
    // As SequenceBlocks::Discard: the tail is the older use.
    while (!held.empty()) held.pop_back();
  }
};

// What a request with this history would find.
struct SessionCopies::Match {
  int64_t tokens = 0;
  std::vector<Held> held;
  std::vector<int64_t> blocks;  // of each layer group
};

SessionCopies::SessionCopies(Backend* backend,
                             const std::vector<std::unique_ptr<FormatCache>>* formats,
                             cache_manager::SessionTable* sessions)
    : backend_(backend), formats_(formats), sessions_(sessions) {}

SessionCopies::~SessionCopies() = default;

absl::StatusOr<FormatCache*> SessionCopies::FormatOf(const CacheOptions& cache) const {
  for (const auto& format : *formats_) {
    if (!cache.kv_format.has_value() || format->cache.format() == *cache.kv_format) {
      return format.get();
    }
  }
  return InvalidField("kv_format",
                      std::string(KvFormatName(*cache.kv_format)) + " is not served here");
}

BlockKey SessionCopies::RootOf(const FormatCache& format, const SessionHistory& history) const {
  return cache_manager::RootKey({.model_fingerprint = backend_->model().fingerprint,
                                 .attention = cache_manager::AttentionText(history.cache.attention),
                                 .block_tokens = format.cache.block_tokens(),
                                 .tenant_salt = history.tenant_salt});
}

SessionCopies::Match SessionCopies::MatchOf(FormatCache* format, const SessionHistory& history,
                                            int64_t limit) const {
  Match match;
  const auto tokens = std::span<const int32_t>(history.tokens).first(static_cast<size_t>(limit));
  const BlockKey root = RootOf(*format, history);
  SequenceBlocks blocks(&format->cache,
                        {.root = root, .attention = history.cache.attention, .max_tokens = limit});
  match.tokens = blocks.MatchBlocks(tokens, limit);
  const auto named = blocks.named();
  const auto rest = tokens.subspan(static_cast<size_t>(match.tokens));
  const auto next =
      rest.first(std::min(rest.size(), static_cast<size_t>(format->cache.block_tokens() - 1)));
  int64_t more = static_cast<int64_t>(next.size());
  std::vector<BlockRef> partial;
  for (const CacheGroup& group : format->cache.groups()) {
    PartialMatch found = group.pool->FindPartial(named.empty() ? root : named.back(), next);
    more = std::min<int64_t>(more, found.matched_tokens);
    partial.push_back(std::move(found.block));
  }
  match.blocks.resize(partial.size());
  for (size_t g = 0; g < partial.size(); ++g) {
    for (size_t b = 0; b < named.size(); ++b) {
      if (blocks.table(g)[b] < 0) continue;
      match.held.push_back({{static_cast<int32_t>(g), static_cast<int64_t>(b)},
                            format->cache.groups()[g].pool->Find(named[b])});
    }
    if (more <= 0) continue;
    match.held.push_back(
        {{static_cast<int32_t>(g), static_cast<int64_t>(named.size())}, std::move(partial[g])});
  }
  for (const Held& held : match.held) ++match.blocks[static_cast<size_t>(held.place.group)];
  match.tokens += std::max<int64_t>(more, 0);
  blocks.Discard();
  return match;
}

absl::StatusOr<SessionCopies::Copy*> SessionCopies::Begin(FormatCache* format, uint64_t* id) {
  if (copies_.size() >= kMaxSessionCopies) {
    return Overloaded("as many sessions are copied as may", kRetryMs);
  }
  *id = ++last_id_;
  auto copy = std::make_unique<Copy>();
  copy->format = format;
  return copies_.emplace(*id, std::move(copy)).first->second.get();
}

SessionCopies::Copy& SessionCopies::At(uint64_t id) const {
  const auto found = copies_.find(id);
  KVIST_CHECK(found != copies_.end(), "the copy has ended");
  return *found->second;
}

absl::StatusOr<SessionExport> SessionCopies::BeginExport(const SessionHistory& history) {
  KVIST_ASSIGN_OR_RETURN(FormatCache* const format, FormatOf(history.cache));
  SessionExport result{.format = format->cache.format()};
  KVIST_ASSIGN_OR_RETURN(Copy* const copy, Begin(format, &result.id));
  if (history.cache.allocation == Allocation::kNone) return result;
  const int64_t all = static_cast<int64_t>(history.tokens.size());
  const int64_t promisable = format->cache.PromisableTokens(history.cache.attention);
  Match match = MatchOf(format, history, all);
  auto promises = Promise(*format, match.blocks, /*held=*/true);
  if (!promises.ok() && promisable < all) {
    match = MatchOf(format, history, promisable);
    promises = Promise(*format, match.blocks, /*held=*/true);
  }
  if (!promises.ok()) {
    End(result.id);
    return promises.status();
  }
  copy->tokens = match.tokens;
  copy->held = std::move(match.held);
  copy->promises = *std::move(promises);
  result.tokens = match.tokens;
  for (const Held& held : copy->held) result.places.push_back(held.place);
  return result;
}

int64_t SessionCopies::TokensIn(const Copy& copy, int64_t index) const {
  const int64_t block_tokens = copy.format->cache.block_tokens();
  return std::clamp<int64_t>(copy.tokens - index * block_tokens, 0, block_tokens);
}

void SessionCopies::Read(uint64_t id, size_t place, std::span<std::byte> out) const {
  const Copy& copy = At(id);
  KVIST_CHECK(place < copy.held.size());
  const auto& [at, ref] = copy.held[place];
  backend_->ReadTokens(copy.format->cache.groups()[static_cast<size_t>(at.group)].backend_pool,
                       ref.index(), static_cast<int32_t>(TokensIn(copy, at.index)), out);
}

absl::StatusOr<uint64_t> SessionCopies::BeginImport(SessionImport import) {
  KVIST_ASSIGN_OR_RETURN(FormatCache* const format, FormatOf(import.history.cache));
  const std::vector<CacheGroup>& groups = format->cache.groups();
  if (import.history.cache.allocation == Allocation::kNone) {
    return InvalidField("cache.allocation", "none keeps no blocks");
  }
  if (import.tokens < 0 || import.tokens > static_cast<int64_t>(import.history.tokens.size())) {
    return InvalidField("blocks.tokens", "are not in the history");
  }
  if (import.blocks.size() != groups.size()) {
    return InvalidField("blocks.groups", "are not as many as the model's layer groups");
  }
  const int64_t most = CeilDiv<int64_t>(import.tokens, format->cache.block_tokens());
  for (size_t g = 0; g < groups.size(); ++g) {
    if (import.blocks[g] < 0 || import.blocks[g] > most) {
      return InvalidField("blocks.groups", "have more blocks than the tokens fill");
    }
  }
  uint64_t id = 0;
  KVIST_ASSIGN_OR_RETURN(Copy* const copy, Begin(format, &id));
  auto promises = Promise(*format, import.blocks, /*held=*/false);
  if (!promises.ok()) {
    End(id);
    return promises.status();
  }
  copy->promises = *std::move(promises);
  copy->tokens = import.tokens;
  for (const int64_t blocks : import.blocks) copy->announced += static_cast<size_t>(blocks);
  copy->history = std::move(import.history);
  copy->keys = {RootOf(*format, copy->history)};
  const auto covered =
      std::span<const int32_t>(copy->history.tokens).first(static_cast<size_t>(copy->tokens));
  const std::vector<BlockKey> keys =
      cache_manager::KeysOf(copy->keys[0], covered, format->cache.block_tokens());
  copy->keys.insert(copy->keys.end(), keys.begin(), keys.end());
  return id;
}

absl::Status SessionCopies::Write(uint64_t id, const BlockPlace& place,
                                  std::span<const std::byte> bytes) {
  Copy& copy = At(id);
  const std::vector<CacheGroup>& groups = copy.format->cache.groups();
  const bool follows = copy.held.empty() || copy.held.back().place < place;
  if (!follows || place.group < 0 || static_cast<size_t>(place.group) >= groups.size() ||
      place.index < 0 || place.index > copy.tokens || TokensIn(copy, place.index) == 0) {
    return InvalidField("records.place", "a block is out of order or beyond the tokens");
  }
  const CacheGroup& group = groups[static_cast<size_t>(place.group)];
  Reservation& promise = copy.promises[static_cast<size_t>(place.group)];
  if (promise.remaining() == 0) {
    return InvalidField("records", "are more than were announced");
  }
  const bool first = copy.held.empty() || copy.held.back().place.group != place.group;
  const int64_t next = first ? 0 : copy.held.back().place.index + 1;
  const bool all_needed =
      cache_manager::SpanInLayers(group.window, copy.history.cache.attention).window_tokens == 0;
  if (all_needed && place.index != next) {
    return InvalidField("records.place", "a block of a full-attention group is missing");
  }
  KVIST_ASSIGN_OR_RETURN(BlockRef ref, group.pool->Allocate(&promise));
  backend_->WriteBlock(group.backend_pool, ref.index(), bytes);
  copy.held.push_back({place, std::move(ref)});
  return absl::OkStatus();
}

void SessionCopies::NameBlock(Copy& copy, size_t held) {
  auto& [place, ref] = copy.held[held];
  BlockPool& pool = *copy.format->cache.groups()[static_cast<size_t>(place.group)].pool;
  const int64_t block_tokens = copy.format->cache.block_tokens();
  const size_t index = static_cast<size_t>(place.index);
  const auto tokens = std::span<const int32_t>(copy.history.tokens)
                          .subspan(static_cast<size_t>(place.index * block_tokens),
                                   static_cast<size_t>(TokensIn(copy, place.index)));
  if (static_cast<int64_t>(tokens.size()) == block_tokens) {
    ref = pool.Commit(std::move(ref), copy.keys[index], copy.keys[index + 1], tokens);
  } else {
    pool.KeepPartial(std::move(ref), copy.keys[index], tokens);
  }
}

absl::StatusOr<bool> SessionCopies::Commit(uint64_t id, size_t max_blocks) {
  Copy& copy = At(id);
  if (copy.held.size() != copy.announced) {
    return InvalidField("records", "are fewer than were announced");
  }
  const size_t end = std::min(copy.held.size(), copy.named + max_blocks);
  for (; copy.named < end; ++copy.named) NameBlock(copy, copy.named);
  return copy.named == copy.held.size();
}

int64_t SessionCopies::Settle(uint64_t id) {
  Copy& copy = At(id);
  KVIST_CHECK(copy.named == copy.announced, "blocks without a name");
  const auto named = std::span<const BlockKey>(copy.keys).subspan(1);
  const auto chain = named.first(std::min(named.size(), cache_manager::kMaxChainBlocks));
  const SessionId& session = copy.history.session;
  bool held_before = false;
  for (const PoolIndex pool : copy.format->pools) {
    held_before = held_before || !sessions_->Chain(session, pool).empty();
  }
  if (!session.empty() && !held_before && !chain.empty()) {
    for (const PoolIndex pool : copy.format->pools) {
      sessions_->SetChain(session, copy.history.tenant, pool, 0, chain);
    }
    sessions_->SetPhase(session, SessionPhase::kIdle);
  }
  return MatchOf(copy.format, copy.history, static_cast<int64_t>(copy.history.tokens.size()))
      .tokens;
}

void SessionCopies::End(uint64_t id) { copies_.erase(id); }

void SessionCopies::AddHeld(const FormatCache& format, size_t group,
                            std::vector<int32_t>* blocks) const {
  for (const auto& [id, copy] : copies_) {
    if (copy->format != &format) continue;
    for (const auto& [place, ref] : copy->held) {
      if (static_cast<size_t>(place.group) == group && !ref.empty()) blocks->push_back(ref.index());
    }
  }
}

}  // namespace kvist::worker
