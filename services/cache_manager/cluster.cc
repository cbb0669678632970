#include "services/cache_manager/cluster.h"

#include <algorithm>
#include <array>
#include <variant>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cache_manager/accounting.h"
#include "cache_manager/limits.h"
#include "common/base/status.h"
#include "services/cache_manager/answers.h"
#include "services/cache_manager/limits.h"
#include "services/runtime/cache_params.h"
#include "services/runtime/id_syntax.h"

namespace kvist::services {
namespace {

namespace cm = ::kvist::cache_manager;

}  // namespace

Cluster::Cluster(const Options& options) : options_(options), side_(&index_) {}

int64_t Cluster::NowMs() const {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             options_.clock->Now().time_since_epoch())
      .count();
}

absl::StatusOr<cm::ConnectionId> Cluster::Open(std::shared_ptr<WorkerConnection> connection) {
  MutexLock lock(mutex_);
  if (connections_.size() >= kMaxWorkerStreams) {
    return Overloaded("the manager has as many worker streams as it may", 1'000);
  }
  const cm::ConnectionId id = next_connection_++;
  connections_[id] = std::move(connection);
  return id;
}

absl::Status Cluster::Receive(cm::ConnectionId id, const v1::WorkerMessage& message) {
  auto plain = FromProto(message);
  WorkerDescription description;
  absl::Status status = plain.status();
  if (status.ok() && message.has_hello()) {
    auto described = DescriptionFromProto(message.hello());
    status = described.status();
    if (status.ok()) description = *std::move(described);
  }
  MutexLock lock(mutex_);
  if (status.ok()) {
    if (message.has_events()) {
      options_.metrics->mirror_events_total.Increment(message.events().events_size());
      for (const v1::Event& event : message.events().events()) {
        if (event.has_evicted()) {
          options_.metrics->mirror_evictions_total[event.evicted().cause()]->Increment();
        }
      }
    }
    status = side_.Receive(id, *std::move(plain), NowMs());
    if (status.ok() && message.has_hello()) {
      const WorkerId worker(message.hello().worker_id());
      descriptions_[worker] = std::move(description);
      unchecked_[worker] = Unchecked();
      ForgetOthersAt(message.hello().address(), worker);
    }
  } else {
    side_.Closed(id, cm::ManagerSide::Ending::kBroken);
  }
  if (!status.ok()) connections_.erase(id);
  Dispatch();
  return status;
}

void Cluster::Closed(cm::ConnectionId id) {
  MutexLock lock(mutex_);
  connections_.erase(id);
  side_.Closed(id, cm::ManagerSide::Ending::kBroken);
  Dispatch();
}

void Cluster::CloseAll(const absl::Status& status) {
  MutexLock lock(mutex_);
  for (const auto& [id, connection] : connections_) {
    side_.Closed(id, cm::ManagerSide::Ending::kBroken);
    connection->Close(status);
  }
  connections_.clear();
}

void Cluster::Dispatch() {
  for (cm::ManagerSide::Outgoing& outgoing : side_.TakeOutgoing()) {
    const auto found = connections_.find(outgoing.connection);
    if (found != connections_.end()) {
      found->second->Send(ToProto(outgoing.message, options_.manager_id));
    }
  }
  for (const cm::ConnectionId id : side_.TakeClosing()) {
    const auto found = connections_.find(id);
    if (found == connections_.end()) continue;
    found->second->Close(absl::FailedPreconditionError("another connection took this one's place"));
    connections_.erase(found);
  }
  for (cm::ManagerSide::Outcome& outcome : side_.TakeOutcomes()) {
    OutcomeKey key(outcome.worker, outcome.outcome.request);
    if (awaited_.contains(key)) outcomes_[std::move(key)] = std::move(outcome.outcome);
    outcome_came_.NotifyAll();
  }
}

void Cluster::Tick(Recount recount) {
  MutexLock lock(mutex_);
  const int64_t now_ms = NowMs();
  side_.Tick(now_ms);
  Dispatch();
  UpdateMetrics(now_ms, recount);
  ForgetLost(now_ms);
}

void Cluster::ForgetOthersAt(const std::string& address, const WorkerId& worker) {
  for (const cm::WorkerEntry* entry : index_.Workers()) {
    const bool same_place = entry->info.address == address && entry->info.id != worker;
    if (same_place && !entry->connected) side_.Forget(WorkerId(entry->info.id));
  }
}

// What is kept beside the index of workers that are gone. One that comes back says Hello first.
void Cluster::ForgetLost(int64_t now_ms) {
  const auto gone = [&](const WorkerId& id) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    const cm::WorkerEntry* entry = index_.Find(id);
    return entry == nullptr ||
           (!entry->connected && entry->LivenessAt(now_ms) == cm::Liveness::kLost);
  };
  absl::erase_if(descriptions_, [&](const auto& row) { return gone(row.first); });
  absl::erase_if(unchecked_, [&](const auto& row) { return gone(row.first); });
  absl::erase_if(confidence_, [&](const auto& row) {
    if (!gone(row.first)) return false;
    options_.metrics->mirror_confidence.Remove(row.second);
    return true;
  });
}

void Cluster::UpdateMetrics(int64_t now_ms, Recount recount) {
  UseOfWorker all;
  uint64_t resyncs = 0;
  int connected = 0;
  for (const cm::WorkerEntry* entry : index_.Workers()) {
    resyncs += entry->resyncs;
    connected += entry->connected;
    if (entry->connected || entry->LivenessAt(now_ms) != cm::Liveness::kLost) {
      prometheus::Gauge*& confidence = confidence_[entry->info.id];
      if (confidence == nullptr) {
        confidence = &options_.metrics->mirror_confidence.Add({{"worker", entry->info.id.value()}});
      }
      confidence->Set(ToProto(entry->ConfidenceAt(now_ms)));
    }
    if (recount == Recount::kCheap) continue;
    const UseOfWorker use = UseOf(*entry);
    all.blocks += use.blocks;
    all.bytes += use.bytes;
    all.shared_bytes += use.shared_bytes;
  }
  options_.metrics->workers_connected.Set(connected);
  // A worker's entry is made anew with each of its lives, so the sum may fall.
  if (resyncs > resyncs_counted_) {
    options_.metrics->mirror_resyncs_total.Increment(
        static_cast<double>(resyncs - resyncs_counted_));
  }
  resyncs_counted_ = resyncs;
  if (recount == Recount::kCheap) return;
  options_.metrics->mirror_blocks.Set(static_cast<double>(all.blocks));
  options_.metrics->mirror_bytes.Set(static_cast<double>(all.bytes));
  options_.metrics->mirror_shared_bytes.Set(static_cast<double>(all.shared_bytes));
}

v1::WorkerInfo Cluster::Info(const cm::WorkerEntry& entry, int64_t now_ms) const {
  v1::WorkerInfo info = ToProto(entry, now_ms);
  const auto described = descriptions_.find(entry.info.id);
  if (described != descriptions_.end()) {
    info.set_model_name(described->second.model_name);
    info.set_context_tokens(described->second.context_tokens);
  }
  return info;
}

absl::StatusOr<v1::LocateResponse> Cluster::Locate(const v1::LocateRequest& request) {
  KVIST_ASSIGN_OR_RETURN(const auto keys,
                         KeysFromBytes("keys", request.keys(), cm::kMaxLocateKeys));
  if (request.block_tokens() < 0) return InvalidField("block_tokens", "must not be negative");
  if (static_cast<size_t>(request.doubted_size()) > cm::kMaxWorkers) {
    return InvalidField("doubted", absl::StrCat("more than ", cm::kMaxWorkers));
  }
  const cm::AttentionSpan attention = SpanFromProto(request.attention());
  KVIST_RETURN_IF_ERROR(cm::ValidateAttention(attention, cm::kMaxWindowTokens));
  MutexLock lock(mutex_);
  const int64_t now_ms = NowMs();
  for (const v1::WorkerLife& life : request.doubted()) {
    if (side_.AskForDigest(WorkerId(life.worker_id()), Incarnation(life.incarnation()), now_ms)) {
      options_.metrics->mirror_digest_rounds_total.Increment();
    }
  }
  Dispatch();
  const cm::LocateQuery query{.model_fingerprint = request.model_fingerprint(),
                              .attention = attention,
                              .format = request.kv_format(),
                              .block_tokens = static_cast<uint32_t>(request.block_tokens()),
                              .keys = keys};
  KVIST_ASSIGN_OR_RETURN(const auto matches, index_.Locate(query, now_ms));
  v1::LocateResponse response;
  for (const cm::WorkerMatch& match : matches) {
    const cm::WorkerEntry* entry = index_.Find(match.worker);
    if (entry == nullptr) continue;
    v1::WorkerMatch* out = response.add_workers();
    *out->mutable_worker() = Info(*entry, now_ms);
    const auto& up_to = match.tokens_up_to_tier;
    out->set_matched_tokens(match.matched_tokens);
    out->set_matched_device_tokens(up_to[0]);
    out->set_matched_host_tokens(up_to[1] - up_to[0]);
    out->set_matched_disk_tokens(up_to[2] - up_to[1]);
  }
  return response;
}

v1::ListWorkersResponse Cluster::ListWorkers() const {
  MutexLock lock(mutex_);
  const int64_t now_ms = NowMs();
  v1::ListWorkersResponse response;
  for (const cm::WorkerEntry* entry : index_.Workers()) {
    if (entry->LivenessAt(now_ms) == cm::Liveness::kLost) continue;
    *response.add_workers() = Info(*entry, now_ms);
  }
  return response;
}

absl::StatusOr<v1::SessionMemory> Cluster::MemoryLocked(const SessionId& session,
                                                        int64_t now_ms) const {
  KVIST_ASSIGN_OR_RETURN(const cm::SessionMemory memory,
                         cm::MemoryOfSession(index_, session, now_ms));
  return ToProto(session, memory, index_);
}

absl::StatusOr<v1::SessionMemory> Cluster::MemoryOf(const SessionId& session) const {
  MutexLock lock(mutex_);
  return MemoryLocked(session, NowMs());
}

absl::StatusOr<v1::GetSessionMemoryResponse> Cluster::MemoryPage(const std::string& after,
                                                                 int32_t page_size) const {
  MutexLock lock(mutex_);
  const int64_t now_ms = NowMs();
  KVIST_ASSIGN_OR_RETURN(const auto rows,
                         cm::ListSessions(index_, {.after = SessionId(after),
                                                   .limit = static_cast<size_t>(page_size)}));
  v1::GetSessionMemoryResponse response;
  SessionId last(after);
  for (const cm::ListedSession& row : rows) {
    if (row.session == last) continue;  // the same one on another worker
    last = row.session;
    KVIST_ASSIGN_OR_RETURN(*response.add_sessions(), MemoryLocked(row.session, now_ms));
  }
  if (response.sessions_size() == page_size) response.set_next_page_token(last.value());
  return response;
}

absl::StatusOr<v1::ListBlocksResponse> Cluster::BlocksOfSession(
    const cm::WorkerEntry& entry, const v1::ListBlocksRequest& request) const {
  v1::ListBlocksResponse response;
  const auto found = entry.mirror->sessions().find(SessionId(request.session_id()));
  if (found == entry.mirror->sessions().end()) {
    return absl::NotFoundError("the worker holds nothing of that session");
  }
  KVIST_ASSIGN_OR_RETURN(BlockCursor cursor, ParseChainCursor(request.page_token()));
  const size_t limit = static_cast<size_t>(request.page_size());
  for (; cursor.pool < found->second.pools.size(); ++cursor.pool, cursor.index = 0) {
    const auto& keys = found->second.pools[cursor.pool].keys;
    const auto& blocks = entry.mirror->blocks(static_cast<cm::PoolIndex>(cursor.pool));
    for (; cursor.index < keys.size(); ++cursor.index) {
      if (static_cast<size_t>(response.blocks_size()) == limit) {
        response.set_next_page_token(absl::StrCat(cursor.pool, ":", cursor.index));
        return response;
      }
      const auto block = blocks.find(keys[cursor.index]);
      if (block == blocks.end() || !block->second.stored()) continue;
      *response.add_blocks() =
          ToProto(static_cast<uint32_t>(cursor.pool), block->first, block->second);
    }
  }
  return response;
}

absl::StatusOr<v1::ListBlocksResponse> Cluster::ListBlocks(
    const v1::ListBlocksRequest& request) const {
  MutexLock lock(mutex_);
  const cm::WorkerEntry* entry = index_.Find(WorkerId(request.worker_id()));
  if (entry == nullptr) return absl::NotFoundError("no such worker");
  if (!request.session_id().empty()) return BlocksOfSession(*entry, request);
  KVIST_ASSIGN_OR_RETURN(BlockCursor cursor, ParseKeyCursor(request.page_token()));
  v1::ListBlocksResponse response;
  const size_t limit = static_cast<size_t>(request.page_size());
  for (; cursor.pool < entry->mirror->num_pools(); ++cursor.pool, cursor.after = {}) {
    const size_t room = limit - static_cast<size_t>(response.blocks_size());
    if (room == 0) {
      response.set_next_page_token(absl::StrCat(cursor.pool, ":", cursor.after.Hex()));
      return response;
    }
    KVIST_ASSIGN_OR_RETURN(const auto blocks,
                           cm::ListBlocks(index_, {.worker = entry->info.id,
                                                   .pool = static_cast<cm::PoolIndex>(cursor.pool),
                                                   .after = cursor.after,
                                                   .limit = room}));
    for (const cm::ListedBlock& listed : blocks) {
      *response.add_blocks() =
          ToProto(static_cast<uint32_t>(cursor.pool), listed.key, listed.block);
    }
    if (blocks.size() == room) {
      response.set_next_page_token(absl::StrCat(cursor.pool, ":", blocks.back().key.Hex()));
      return response;
    }
  }
  return response;
}

v1::GetStatsResponse Cluster::Stats() const {
  MutexLock lock(mutex_);
  const int64_t now_ms = NowMs();
  v1::GetStatsResponse response;
  response.set_manager_id(options_.manager_id);
  absl::flat_hash_set<SessionId> sessions;
  for (const cm::WorkerEntry* entry : index_.Workers()) {
    if (entry->LivenessAt(now_ms) == cm::Liveness::kLost) continue;
    *response.add_workers() = Info(*entry, now_ms);
    for (const auto& [session, held] : entry->mirror->sessions()) sessions.insert(session);
    const UseOfWorker use = UseOf(*entry);
    response.set_blocks(response.blocks() + static_cast<int64_t>(use.blocks));
    response.set_bytes(response.bytes() + static_cast<int64_t>(use.bytes));
    response.set_shared_bytes(response.shared_bytes() + static_cast<int64_t>(use.shared_bytes));
  }
  response.set_sessions_holding_blocks(static_cast<int64_t>(sessions.size()));
  for (size_t i = 0; i < kEvictionCauses; ++i) {
    const auto cause = static_cast<cm::EvictionCause>(i);
    const double count = options_.metrics->mirror_evictions_total[i]->Value();
    (*response.mutable_evictions_by_cause())[std::string(cm::EvictionCauseName(cause))] =
        static_cast<int64_t>(count);
  }
  response.set_resyncs(static_cast<int64_t>(options_.metrics->mirror_resyncs_total.Value()));
  response.set_events_applied(static_cast<int64_t>(options_.metrics->mirror_events_total.Value()));
  return response;
}

std::vector<WorkerId> Cluster::ConnectedWorkers() const {
  std::vector<WorkerId> workers;
  for (const cm::WorkerEntry* entry : index_.Workers()) {
    if (entry->connected) workers.push_back(entry->info.id);
  }
  return workers;
}

std::optional<Cluster::HeldPage> Cluster::NextUnchecked(size_t limit) const {
  MutexLock lock(mutex_);
  const int64_t now_ms = NowMs();
  for (const auto& [worker, unchecked] : unchecked_) {
    const cm::WorkerEntry* entry = index_.Find(worker);
    if (entry == nullptr || entry->ConfidenceAt(now_ms) != cm::Confidence::kExact) continue;
    const auto rows =
        cm::ListSessions(index_, {.worker = worker, .after = unchecked.after, .limit = limit});
    if (!rows.ok()) continue;
    HeldPage page{.worker = worker, .after = unchecked.after};
    for (const cm::ListedSession& row : *rows) {
      if (absl::StartsWith(row.session.value(), ToAbsl(kImplicitSessionPrefix))) continue;
      page.sessions.push_back({row.session, row.phase == cm::SessionPhase::kActive});
    }
    if (rows->size() == limit) page.last = rows->back().session;
    return page;
  }
  return std::nullopt;
}

void Cluster::Checked(const HeldPage& page, bool again) {
  MutexLock lock(mutex_);
  const auto found = unchecked_.find(page.worker);
  // It came again meanwhile: from the beginning.
  if (found == unchecked_.end() || found->second.after != page.after) return;
  Unchecked& unchecked = found->second;
  unchecked.again |= again;
  if (!page.last.empty()) {
    unchecked.after = page.last;
  } else if (unchecked.again) {
    unchecked = Unchecked();
  } else {
    unchecked_.erase(found);
  }
}

}  // namespace kvist::services
