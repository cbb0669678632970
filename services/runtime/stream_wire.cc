#include "services/runtime/stream_wire.h"

#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "cache_manager/limits.h"
#include "common/base/status.h"
#include "services/runtime/id_syntax.h"

namespace kvist::services {
namespace {

namespace cm = ::kvist::cache_manager;

constexpr size_t kKeyBytes = sizeof(cm::BlockKey::bytes);

// A number in [0, max], as type T.
template <typename T, typename Wire>
absl::StatusOr<T> Bounded(std::string_view field, Wire value, uint64_t max) {
  if constexpr (std::is_signed_v<Wire>) {
    if (value < 0) return InvalidField(field, "must not be negative");
  }
  if (static_cast<uint64_t>(value) > max)
    return InvalidField(field, absl::StrCat("more than ", max));
  return static_cast<T>(value);
}

absl::StatusOr<cm::PoolIndex> PoolFromProto(uint32_t pool) {
  return Bounded<cm::PoolIndex>("pool", pool, cm::kMaxPoolsPerWorker - 1);
}

template <typename E>
absl::StatusOr<E> EnumFromProto(std::string_view field, int value, size_t count) {
  if (value < 0 || static_cast<size_t>(value) >= count) {
    return InvalidField(field, absl::StrCat("unknown value ", value));
  }
  return static_cast<E>(value);
}

absl::StatusOr<cm::BlockKey> KeyFromBytes(std::string_view field, std::string_view bytes) {
  if (bytes.size() != kKeyBytes) return InvalidField(field, "must have 16 bytes");
  cm::BlockKey key;
  std::memcpy(key.bytes.data(), bytes.data(), kKeyBytes);
  return key;
}

cm::WorkerLoad LoadFromProto(const v1::WorkerLoad& load) {
  return {.running_sequences = load.running_sequences(),
          .waiting_sequences = load.waiting_sequences(),
          .queued_prefill_tokens = load.queued_prefill_tokens(),
          .max_sequences = load.max_sequences(),
          .draining = load.draining()};
}

absl::StatusOr<cm::PoolSpec> PoolSpecFromProto(const v1::Pool& pool) {
  cm::PoolSpec spec{.group = pool.group(), .format = pool.kv_format()};
  KVIST_ASSIGN_OR_RETURN(
      spec.window_tokens,
      Bounded<uint32_t>("pools.window_tokens", pool.window_tokens(), cm::kMaxWindowTokens));
  KVIST_ASSIGN_OR_RETURN(spec.block_tokens,
                         Bounded<uint32_t>("pools.block_tokens", pool.block_tokens(), 128));
  KVIST_ASSIGN_OR_RETURN(
      spec.bytes_per_block,
      Bounded<uint64_t>("pools.bytes_per_block", pool.bytes_per_block(), cm::kMaxBytesPerBlock));
  KVIST_ASSIGN_OR_RETURN(spec.num_blocks, Bounded<uint32_t>("pools.num_blocks", pool.num_blocks(),
                                                            cm::kMaxBlocksPerPool));
  return spec;
}

absl::StatusOr<cm::WorkerMessage> HelloFromProto(const v1::Hello& hello) {
  KVIST_RETURN_IF_ERROR(CheckId("worker_id", hello.worker_id(), EmptyId::kRefused));
  if (static_cast<size_t>(hello.pools_size()) > cm::kMaxPoolsPerWorker) {
    return InvalidField("pools", absl::StrCat("more than ", cm::kMaxPoolsPerWorker));
  }
  cm::Hello result{.protocol_version = hello.protocol_version(), .last_seq = hello.last_seq()};
  result.info.id = WorkerId(hello.worker_id());
  result.info.incarnation = Incarnation(hello.incarnation());
  result.info.model_fingerprint = hello.model_fingerprint();
  result.info.numerics_id = hello.numerics_id();
  result.info.address = hello.address();
  for (const v1::Pool& pool : hello.pools()) {
    KVIST_ASSIGN_OR_RETURN(cm::PoolSpec spec, PoolSpecFromProto(pool));
    result.info.block_tokens = spec.block_tokens;
    result.info.pools.push_back(std::move(spec));
  }
  return result;
}

absl::StatusOr<cm::Event> StoredFromProto(const v1::BlockStored& stored) {
  cm::BlockStored event;
  KVIST_ASSIGN_OR_RETURN(event.pool, PoolFromProto(stored.pool()));
  KVIST_ASSIGN_OR_RETURN(event.key, KeyFromBytes("stored.key", stored.key()));
  KVIST_ASSIGN_OR_RETURN(event.parent, KeyFromBytes("stored.parent", stored.parent()));
  KVIST_ASSIGN_OR_RETURN(event.tier,
                         EnumFromProto<cm::Tier>("stored.tier", stored.tier(), cm::kNumTiers));
  return event;
}

absl::StatusOr<cm::Event> EvictedFromProto(const v1::BlockEvicted& evicted) {
  cm::BlockEvicted event;
  KVIST_ASSIGN_OR_RETURN(event.pool, PoolFromProto(evicted.pool()));
  KVIST_ASSIGN_OR_RETURN(event.key, KeyFromBytes("evicted.key", evicted.key()));
  KVIST_ASSIGN_OR_RETURN(event.tier,
                         EnumFromProto<cm::Tier>("evicted.tier", evicted.tier(), cm::kNumTiers));
  KVIST_ASSIGN_OR_RETURN(
      event.cause,
      EnumFromProto<cm::EvictionCause>("evicted.cause", evicted.cause(), cm::kNumEvictionCauses));
  return event;
}

absl::StatusOr<cm::Event> HoldsFromProto(const v1::SessionHolds& holds) {
  cm::SessionHolds event{.session = SessionId(holds.session_id()),
                         .tenant = TenantId(holds.tenant_id())};
  KVIST_ASSIGN_OR_RETURN(event.pool, PoolFromProto(holds.pool()));
  KVIST_ASSIGN_OR_RETURN(
      event.first_block,
      Bounded<uint32_t>("holds.first_block", holds.first_block(), cm::kMaxChainBlocks));
  KVIST_ASSIGN_OR_RETURN(const std::vector<cm::BlockKey> keys,
                         KeysFromBytes("holds.keys", holds.keys(), cm::kMaxKeysPerEvent));
  event.keys.assign(keys.begin(), keys.end());
  return event;
}

absl::StatusOr<cm::Event> EventFromProto(const v1::Event& event) {
  switch (event.event_case()) {
    case v1::Event::kStored:
      return StoredFromProto(event.stored());
    case v1::Event::kEvicted:
      return EvictedFromProto(event.evicted());
    case v1::Event::kHolds:
      return HoldsFromProto(event.holds());
    case v1::Event::kReleased:
      return cm::SessionReleased{.session = SessionId(event.released().session_id())};
    case v1::Event::kUnnamed: {
      cm::SessionUnnamed unnamed{.session = SessionId(event.unnamed().session_id()),
                                 .partial_blocks = event.unnamed().partial_blocks(),
                                 .reserved_blocks = event.unnamed().reserved_blocks()};
      KVIST_ASSIGN_OR_RETURN(unnamed.pool, PoolFromProto(event.unnamed().pool()));
      return unnamed;
    }
    case v1::Event::kPhase: {
      cm::SessionPhaseChanged changed{.session = SessionId(event.phase().session_id())};
      KVIST_ASSIGN_OR_RETURN(
          changed.phase,
          EnumFromProto<cm::SessionPhase>("phase", event.phase().phase(), cm::kNumSessionPhases));
      return changed;
    }
    case v1::Event::EVENT_NOT_SET:
      break;
  }
  return InvalidField("event", "unknown kind");
}

absl::StatusOr<std::vector<cm::Event>> EventsFromProto(
    const google::protobuf::RepeatedPtrField<v1::Event>& events) {
  if (static_cast<size_t>(events.size()) > cm::kMaxEventsPerBatch) {
    return InvalidField("events", absl::StrCat("more than ", cm::kMaxEventsPerBatch));
  }
  std::vector<cm::Event> result;
  result.reserve(static_cast<size_t>(events.size()));
  for (const v1::Event& event : events) {
    KVIST_ASSIGN_OR_RETURN(cm::Event one, EventFromProto(event));
    result.push_back(std::move(one));
  }
  return result;
}

absl::StatusOr<cm::WorkerMessage> ChunkFromProto(const v1::SnapshotChunk& chunk) {
  cm::SnapshotChunk result{.resync_id = chunk.resync_id(),
                           .base_seq = chunk.base_seq(),
                           .index = chunk.index(),
                           .end_seq = chunk.end_seq(),
                           .last = chunk.last()};
  KVIST_ASSIGN_OR_RETURN(result.events, EventsFromProto(chunk.events()));
  return result;
}

absl::StatusOr<cm::WorkerMessage> HeartbeatFromProto(const v1::Heartbeat& heartbeat) {
  if (static_cast<size_t>(heartbeat.digests_size()) > cm::kMaxPoolsPerWorker) {
    return InvalidField("digests", absl::StrCat("more than ", cm::kMaxPoolsPerWorker));
  }
  cm::Heartbeat result{.seq = heartbeat.seq(), .load = LoadFromProto(heartbeat.load())};
  for (const v1::PoolDigest& digest : heartbeat.digests()) {
    result.digests.push_back({.placement = digest.placement(), .holding = digest.holding()});
  }
  return result;
}

absl::StatusOr<cm::WorkerMessage> OutcomeFromProto(const v1::CommandOutcome& outcome) {
  cm::CommandOutcome result{.request = RequestId(outcome.request_id()), .reason = outcome.reason()};
  KVIST_ASSIGN_OR_RETURN(result.result,
                         EnumFromProto<cm::CommandResult>("outcome.result", outcome.result(), 3));
  constexpr uint64_t kMaxBlocks = std::numeric_limits<int64_t>::max();
  KVIST_ASSIGN_OR_RETURN(result.evicted_blocks,
                         Bounded<uint64_t>("outcome.blocks", outcome.blocks(), kMaxBlocks));
  KVIST_ASSIGN_OR_RETURN(result.left_blocks, Bounded<uint64_t>("outcome.left_blocks",
                                                               outcome.left_blocks(), kMaxBlocks));
  return result;
}

absl::StatusOr<cm::ManagerMessage> EvictFromProto(const v1::EvictCommand& evict) {
  cm::EvictCommand command{.incarnation = Incarnation(evict.incarnation()),
                           .intent_version = evict.intent_version(),
                           .request = RequestId(evict.request_id())};
  if (evict.has_session()) {
    command.session = SessionId(evict.session().session_id());
    command.release = evict.session().release();
    if (evict.session().has_keep_tokens()) {
      KVIST_ASSIGN_OR_RETURN(command.keep_tokens,
                             Bounded<uint64_t>("session.keep_tokens", evict.session().keep_tokens(),
                                               std::numeric_limits<int64_t>::max()));
    }
  } else if (evict.has_keys()) {
    KVIST_ASSIGN_OR_RETURN(command.pool, PoolFromProto(evict.keys().pool()));
    KVIST_ASSIGN_OR_RETURN(command.keys,
                           KeysFromBytes("keys", evict.keys().keys(), cm::kMaxKeysPerCommand));
  } else {
    KVIST_ASSIGN_OR_RETURN(command.pool, PoolFromProto(evict.count().pool()));
    KVIST_ASSIGN_OR_RETURN(command.blocks, Bounded<uint32_t>("count.blocks", evict.count().blocks(),
                                                             cm::kMaxBlocksPerPool));
  }
  return command;
}

// --- to the wire

std::string BytesOfKeys(std::span<const cm::BlockKey> keys) {
  std::string bytes;
  bytes.reserve(keys.size() * kKeyBytes);
  for (const cm::BlockKey& key : keys) bytes += KeyBytes(key);
  return bytes;
}

struct FillEvent {
  v1::Event* out;

  void operator()(const cm::BlockStored& event) const {
    v1::BlockStored* stored = out->mutable_stored();
    stored->set_pool(event.pool);
    stored->set_key(KeyBytes(event.key));
    stored->set_parent(KeyBytes(event.parent));
    stored->set_tier(static_cast<v1::Tier>(event.tier));
  }
  void operator()(const cm::BlockEvicted& event) const {
    v1::BlockEvicted* evicted = out->mutable_evicted();
    evicted->set_pool(event.pool);
    evicted->set_key(KeyBytes(event.key));
    evicted->set_tier(static_cast<v1::Tier>(event.tier));
    evicted->set_cause(static_cast<v1::EvictionCause>(event.cause));
  }
  void operator()(const cm::SessionHolds& event) const {
    v1::SessionHolds* holds = out->mutable_holds();
    holds->set_session_id(event.session.value());
    holds->set_tenant_id(event.tenant.value());
    holds->set_pool(event.pool);
    holds->set_first_block(event.first_block);
    holds->set_keys(BytesOfKeys(event.keys));
  }
  void operator()(const cm::SessionReleased& event) const {
    out->mutable_released()->set_session_id(event.session.value());
  }
  void operator()(const cm::SessionUnnamed& event) const {
    v1::SessionUnnamed* unnamed = out->mutable_unnamed();
    unnamed->set_session_id(event.session.value());
    unnamed->set_pool(event.pool);
    unnamed->set_partial_blocks(event.partial_blocks);
    unnamed->set_reserved_blocks(event.reserved_blocks);
  }
  void operator()(const cm::SessionPhaseChanged& event) const {
    out->mutable_phase()->set_session_id(event.session.value());
    out->mutable_phase()->set_phase(static_cast<v1::SessionPhase>(event.phase));
  }
};

struct FillWorkerMessage {
  v1::WorkerMessage* out;
  const WorkerDescription& description;

  void operator()(const cm::Hello& hello) const {
    v1::Hello* message = out->mutable_hello();
    message->set_worker_id(hello.info.id.value());
    message->set_incarnation(hello.info.incarnation.value());
    message->set_protocol_version(hello.protocol_version);
    message->set_model_fingerprint(hello.info.model_fingerprint);
    message->set_model_name(description.model_name);
    message->set_numerics_id(hello.info.numerics_id);
    message->set_address(hello.info.address);
    for (const cm::PoolSpec& pool : hello.info.pools) *message->add_pools() = ToProto(pool);
    message->set_last_seq(hello.last_seq);
    message->set_context_tokens(description.context_tokens);
  }
  void operator()(const cm::EventBatch& batch) const {
    v1::EventBatch* message = out->mutable_events();
    message->set_first_seq(batch.first_seq);
    for (const cm::Event& event : batch.events) std::visit(FillEvent{message->add_events()}, event);
    *message->mutable_load() = ToProto(batch.load);
  }
  void operator()(const cm::Heartbeat& heartbeat) const {
    v1::Heartbeat* message = out->mutable_heartbeat();
    message->set_seq(heartbeat.seq);
    for (const cm::PoolDigest& digest : heartbeat.digests) {
      v1::PoolDigest* one = message->add_digests();
      one->set_placement(digest.placement);
      one->set_holding(digest.holding);
    }
    *message->mutable_load() = ToProto(heartbeat.load);
  }
  void operator()(const cm::Alive&) const { out->mutable_alive(); }
  void operator()(const cm::SnapshotChunk& chunk) const {
    v1::SnapshotChunk* message = out->mutable_snapshot();
    message->set_resync_id(chunk.resync_id);
    message->set_base_seq(chunk.base_seq);
    message->set_index(chunk.index);
    message->set_end_seq(chunk.end_seq);
    for (const cm::Event& event : chunk.events) std::visit(FillEvent{message->add_events()}, event);
    message->set_last(chunk.last);
  }
  void operator()(const cm::CommandOutcome& outcome) const {
    v1::CommandOutcome* message = out->mutable_outcome();
    message->set_request_id(outcome.request.value());
    message->set_result(static_cast<v1::CommandOutcome::Result>(outcome.result));
    message->set_blocks(static_cast<int64_t>(outcome.evicted_blocks));
    message->set_left_blocks(static_cast<int64_t>(outcome.left_blocks));
    message->set_reason(outcome.reason);
  }
};

void FillEvict(const cm::EvictCommand& command, v1::EvictCommand* message) {
  message->set_incarnation(command.incarnation.value());
  message->set_request_id(command.request.value());
  message->set_intent_version(command.intent_version);
  if (!command.session.empty()) {
    message->mutable_session()->set_session_id(command.session.value());
    message->mutable_session()->set_release(command.release);
    if (command.keep_tokens.has_value()) {
      message->mutable_session()->set_keep_tokens(static_cast<int64_t>(*command.keep_tokens));
    }
  } else if (!command.keys.empty()) {
    message->mutable_keys()->set_pool(command.pool);
    message->mutable_keys()->set_keys(BytesOfKeys(command.keys));
  } else {
    message->mutable_count()->set_pool(command.pool);
    message->mutable_count()->set_blocks(static_cast<int32_t>(command.blocks));
  }
}

}  // namespace

absl::StatusOr<std::vector<cm::BlockKey>> KeysFromBytes(std::string_view field,
                                                        std::string_view bytes, size_t max_keys) {
  if (bytes.size() % kKeyBytes != 0) return InvalidField(field, "must have 16 bytes per key");
  const size_t count = bytes.size() / kKeyBytes;
  if (count > max_keys) return InvalidField(field, absl::StrCat("more than ", max_keys, " keys"));
  std::vector<cm::BlockKey> keys(count);
  if (count > 0) std::memcpy(keys.data(), bytes.data(), bytes.size());
  return keys;
}

std::string KeyBytes(const cm::BlockKey& key) {
  return std::string(reinterpret_cast<const char*>(key.bytes.data()), key.bytes.size());
}

absl::StatusOr<cm::WorkerMessage> FromProto(const v1::WorkerMessage& message) {
  switch (message.message_case()) {
    case v1::WorkerMessage::kHello:
      return HelloFromProto(message.hello());
    case v1::WorkerMessage::kEvents: {
      cm::EventBatch batch{.first_seq = message.events().first_seq(),
                           .load = LoadFromProto(message.events().load())};
      KVIST_ASSIGN_OR_RETURN(batch.events, EventsFromProto(message.events().events()));
      return batch;
    }
    case v1::WorkerMessage::kHeartbeat:
      return HeartbeatFromProto(message.heartbeat());
    case v1::WorkerMessage::kSnapshot:
      return ChunkFromProto(message.snapshot());
    case v1::WorkerMessage::kOutcome:
      return OutcomeFromProto(message.outcome());
    case v1::WorkerMessage::kAlive:
      return cm::Alive{};
    case v1::WorkerMessage::MESSAGE_NOT_SET:
      break;
  }
  return InvalidField("message", "unknown kind");
}

absl::StatusOr<WorkerDescription> DescriptionFromProto(const v1::Hello& hello) {
  if (hello.model_name().size() > cm::kMaxNameBytes) return InvalidField("model_name", "too long");
  if (hello.context_tokens() < 0) return InvalidField("context_tokens", "must not be negative");
  return WorkerDescription{.model_name = hello.model_name(),
                           .context_tokens = hello.context_tokens()};
}

absl::StatusOr<cm::ManagerMessage> FromProto(const v1::ManagerMessage& message) {
  switch (message.message_case()) {
    case v1::ManagerMessage::kWelcome:
      return cm::Welcome{.protocol_version = message.welcome().protocol_version(),
                         .heartbeat_interval_ms = message.welcome().heartbeat_interval_ms(),
                         .intent_version = message.welcome().intent_version()};
    case v1::ManagerMessage::kResync:
      return cm::ResyncRequest{.resync_id = message.resync().resync_id()};
    case v1::ManagerMessage::kDigest:
      return cm::DigestRequest();
    case v1::ManagerMessage::kEvict:
      return EvictFromProto(message.evict());
    case v1::ManagerMessage::kFork:
      return cm::ForkCommand{.incarnation = Incarnation(message.fork().incarnation()),
                             .request = RequestId(message.fork().request_id()),
                             .session = SessionId(message.fork().session_id()),
                             .new_session = SessionId(message.fork().new_session_id())};
    case v1::ManagerMessage::MESSAGE_NOT_SET:
      break;
  }
  return InvalidField("message", "unknown kind");
}

v1::WorkerMessage ToProto(const cm::WorkerMessage& message, const WorkerDescription& description) {
  v1::WorkerMessage result;
  std::visit(FillWorkerMessage{&result, description}, message);
  return result;
}

v1::ManagerMessage ToProto(const cm::ManagerMessage& message, const std::string& manager_id) {
  v1::ManagerMessage result;
  if (const auto* welcome = std::get_if<cm::Welcome>(&message)) {
    result.mutable_welcome()->set_manager_id(manager_id);
    result.mutable_welcome()->set_protocol_version(welcome->protocol_version);
    result.mutable_welcome()->set_heartbeat_interval_ms(welcome->heartbeat_interval_ms);
    result.mutable_welcome()->set_intent_version(welcome->intent_version);
  } else if (const auto* resync = std::get_if<cm::ResyncRequest>(&message)) {
    result.mutable_resync()->set_resync_id(resync->resync_id);
  } else if (std::holds_alternative<cm::DigestRequest>(message)) {
    result.mutable_digest();
  } else if (const auto* fork = std::get_if<cm::ForkCommand>(&message)) {
    result.mutable_fork()->set_incarnation(fork->incarnation.value());
    result.mutable_fork()->set_request_id(fork->request.value());
    result.mutable_fork()->set_session_id(fork->session.value());
    result.mutable_fork()->set_new_session_id(fork->new_session.value());
  } else {
    FillEvict(std::get<cm::EvictCommand>(message), result.mutable_evict());
  }
  return result;
}

v1::Pool ToProto(const cm::PoolSpec& pool) {
  v1::Pool message;
  message.set_group(pool.group);
  message.set_kv_format(pool.format);
  message.set_window_tokens(pool.window_tokens);
  message.set_bytes_per_block(static_cast<int64_t>(pool.bytes_per_block));
  message.set_num_blocks(static_cast<int32_t>(pool.num_blocks));
  message.set_block_tokens(static_cast<int32_t>(pool.block_tokens));
  return message;
}

v1::WorkerLoad ToProto(const cm::WorkerLoad& load) {
  v1::WorkerLoad message;
  message.set_running_sequences(load.running_sequences);
  message.set_waiting_sequences(load.waiting_sequences);
  message.set_queued_prefill_tokens(load.queued_prefill_tokens);
  message.set_max_sequences(load.max_sequences);
  message.set_draining(load.draining);
  return message;
}

}  // namespace kvist::services
