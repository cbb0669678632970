#include "services/cache_manager/turn_book.h"

#include <algorithm>
#include <span>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cache_manager/limits.h"
#include "cache_manager/turns.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "services/cache_manager/limits.h"
#include "services/runtime/cache_params.h"
#include "services/runtime/id_syntax.h"

namespace kvist::services {
namespace {

namespace cm = ::kvist::cache_manager;

constexpr size_t kMaxFormatNameBytes = 16;

absl::Status TakeCacheParams(const v1::CacheParams& params, cm::SessionRecord& record) {
  KVIST_RETURN_IF_ERROR(ValidateCacheParams(params, cm::kMaxWindowTokens));
  record.allocation = AllocationName(params.allocation());
  record.attention = SpanFromProto(params.attention());
  if (params.kv_format().size() > kMaxFormatNameBytes) {
    return InvalidField("cache.kv_format", "is no format's name");
  }
  KVIST_RETURN_IF_ERROR(CheckId("cache.kv_format", params.kv_format(), EmptyId::kAllowed));
  record.kv_format = params.kv_format();
  record.offload = OffloadName(params.offload());
  return absl::OkStatus();
}

v1::CacheParams CacheOf(const cm::SessionRecord& record) {
  v1::CacheParams params;
  params.set_allocation(AllocationFromName(record.allocation));
  if (record.attention != cm::AttentionSpan()) {
    *params.mutable_attention() = ToProto(record.attention);
  }
  params.set_kv_format(record.kv_format);
  params.set_offload(OffloadFromName(record.offload));
  return params;
}

absl::StatusOr<cm::TurnFinish> FinishFromProto(v1::FinishReason reason) {
  switch (reason) {
    case v1::STOP:
      return cm::TurnFinish::kStop;
    case v1::LENGTH:
      return cm::TurnFinish::kLength;
    case v1::CANCELLED:
      return cm::TurnFinish::kCancelled;
    case v1::DEADLINE:
      return cm::TurnFinish::kDeadline;
    case v1::ERROR:
      return cm::TurnFinish::kError;
    default:
      return InvalidField("reason", "must be set");
  }
}

// TurnFinish and FinishReason have the same order, kNone being unspecified.
v1::FinishReason FinishToProto(cm::TurnFinish finish) {
  return static_cast<v1::FinishReason>(static_cast<int>(finish));
}
static_assert(static_cast<int>(cm::TurnFinish::kError) == v1::ERROR);
static_assert(static_cast<int>(cm::TurnFinish::kStop) == v1::STOP);

v1::Session ToProto(const StoredSession& session, int64_t history_tokens) {
  const cm::SessionRecord& record = session.record;
  v1::Session message;
  message.set_id(record.id.value());
  message.set_model_fingerprint(record.model);
  message.set_version(record.version);
  message.set_history_tokens(history_tokens);
  message.set_turns(session.turns);
  message.set_created_unix_ms(record.created_wall_ms);
  message.set_last_used_unix_ms(record.last_used_wall_ms);
  if (record.time_to_live_ms > 0) {
    message.set_expires_unix_ms(record.last_used_wall_ms + record.time_to_live_ms);
  }
  *message.mutable_cache() = CacheOf(record);
  if (record.open_turn.has_value()) message.set_open_turn_id(record.open_turn->id.value());
  return message;
}

void AddIds(std::span<const int32_t> ids, google::protobuf::RepeatedField<int32_t>* out) {
  out->Add(ids.begin(), ids.end());
}

absl::Status NotOpen(const cm::SessionRecord& record) {
  return absl::AbortedError(
      absl::StrCat("the turn is not the open one; the session is at version ", record.version));
}

// Closes the turn as if it had never begun.
absl::Status DiscardTurn(const TurnId& turn, StoredSession& session) {
  cm::SessionRecord& record = session.record;
  if (!record.open_turn.has_value() || record.open_turn->id != turn) return NotOpen(record);
  record.open_turn.reset();
  if (record.token_ids.empty()) record.model.clear();  // set by this turn, which never was
  session.open_request.clear();
  ++record.version;
  return absl::OkStatus();
}

}  // namespace

int64_t TurnBook::NowMs() const {
  return std::chrono::duration_cast<std::chrono::milliseconds>(clock_->WallNow().time_since_epoch())
      .count();
}

absl::StatusOr<StoredSession> TurnBook::Read(const std::string& id, History history) {
  KVIST_RETURN_IF_ERROR(CheckId("session_id", id, EmptyId::kRefused));
  KVIST_ASSIGN_OR_RETURN(StoredSession session, store_->Get(SessionId(id), history));
  if (cm::IsExpired(session.record, NowMs())) {
    return absl::NotFoundError(absl::StrCat("session '", id, "' has expired"));
  }
  return session;
}

absl::StatusOr<StoredSession> TurnBook::Change(
    const std::string& id, HistoryWrite history,
    const std::function<absl::Status(StoredSession&)>& change) {
  absl::Status lost;
  for (int i = 0; i < kMaxWriteTries; ++i) {
    KVIST_ASSIGN_OR_RETURN(StoredSession session, Read(id, History::kRead));
    const uint64_t version = session.record.version;
    KVIST_RETURN_IF_ERROR(change(session));
    if (session.record.version == version) return session;
    const MonotonicTime begin = clock_->Now();
    const absl::Status status = store_->Update(session, version, history);
    metrics_->store_write_seconds.Observe(SecondsBetween(begin, clock_->Now()));
    if (status.ok()) return session;
    if (!absl::IsAborted(status)) return status;
    lost = status;
  }
  return lost;
}

absl::StatusOr<v1::BeginTurnResponse> TurnBook::BeginTurn(const v1::BeginTurnRequest& request) {
  KVIST_RETURN_IF_ERROR(CheckId("turn_id", request.turn_id(), EmptyId::kRefused));
  if (request.renew()) return RenewTurn(request);
  KVIST_RETURN_IF_ERROR(CheckId("request_id", request.request_id(), EmptyId::kRefused));
  if (request.model_fingerprint().empty() ||
      request.model_fingerprint().size() > cm::kMaxNameBytes) {
    return InvalidField("model_fingerprint", "must be set");
  }
  if (request.request().size() > kMaxOpenRequestBytes) {
    return FieldOutOfRange("request", absl::StrCat("more than ", kMaxOpenRequestBytes, " bytes"));
  }
  const cm::BeginTurnRequest begin{
      .turn = TurnId(request.turn_id()),
      .request = RequestId(request.request_id()),
      .seed = request.seed(),
      .lease_ms = request.lease_ms() == 0 ? kDefaultTurnLeaseMs : request.lease_ms()};
  KVIST_ASSIGN_OR_RETURN(
      const StoredSession session,
      Change(request.session_id(), HistoryWrite::kKeep, [&](StoredSession& stored) -> absl::Status {
        cm::SessionRecord& record = stored.record;
        const bool open = record.open_turn.has_value() && record.open_turn->id == begin.turn;
        // Without a history nothing ties it to the model of an earlier turn, which failed.
        if (record.token_ids.empty() && !open) record.model = request.model_fingerprint();
        if (record.model != request.model_fingerprint()) {
          return absl::FailedPreconditionError(
              "the session began with another model: reset it or take a new one");
        }
        KVIST_RETURN_IF_ERROR(cm::BeginTurn(begin, NowMs(), record));
        stored.open_request = request.request();
        return absl::OkStatus();
      }));
  v1::BeginTurnResponse response;
  AddIds(session.record.token_ids, response.mutable_history_ids());
  *response.mutable_cache() = CacheOf(session.record);
  return response;
}

absl::StatusOr<v1::BeginTurnResponse> TurnBook::RenewTurn(const v1::BeginTurnRequest& request) {
  KVIST_RETURN_IF_ERROR(
      Change(request.session_id(), HistoryWrite::kKeep, [&](StoredSession& stored) -> absl::Status {
        cm::SessionRecord& record = stored.record;
        if (!record.open_turn.has_value() || record.open_turn->id.value() != request.turn_id()) {
          return NotOpen(record);
        }
        const cm::BeginTurnRequest again{
            .turn = record.open_turn->id,
            .request = record.open_turn->request,
            .lease_ms = request.lease_ms() == 0 ? kDefaultTurnLeaseMs : request.lease_ms()};
        return cm::BeginTurn(again, NowMs(), record);
      }).status());
  return v1::BeginTurnResponse();
}

absl::StatusOr<v1::EndTurnResponse> TurnBook::EndTurn(const v1::EndTurnRequest& request) {
  KVIST_RETURN_IF_ERROR(CheckId("turn_id", request.turn_id(), EmptyId::kRefused));
  if (request.prompt_ids() < 0 || request.prompt_ids() > request.appended_ids_size()) {
    return InvalidField("prompt_ids", "must be 0 .. the number of appended_ids");
  }
  std::optional<int64_t> text_bytes;
  if (request.has_answer_text_bytes()) {
    if (request.answer_text_bytes() < 0) {
      return InvalidField("answer_text_bytes", "must not be negative");
    }
    text_bytes = request.answer_text_bytes();
  }
  const TurnId turn(request.turn_id());
  cm::EndTurnRequest end{.turn = turn,
                         .appended = {request.appended_ids().data(),
                                      static_cast<size_t>(request.appended_ids_size())}};
  if (!request.discard()) {
    KVIST_ASSIGN_OR_RETURN(end.finish, FinishFromProto(request.reason()));
  }
  const auto history = request.discard() ? HistoryWrite::kKeep : HistoryWrite::kReplace;
  KVIST_ASSIGN_OR_RETURN(
      const StoredSession session,
      Change(request.session_id(), history, [&](StoredSession& stored) -> absl::Status {
        if (request.discard()) return DiscardTurn(turn, stored);
        const uint64_t version = stored.record.version;
        KVIST_RETURN_IF_ERROR(cm::EndTurn(end, NowMs(), stored.record));
        if (stored.record.version == version) return absl::OkStatus();  // a retry: it has ended
        ++stored.turns;
        stored.last_answer_tokens =
            static_cast<uint64_t>(request.appended_ids_size() - request.prompt_ids());
        stored.last_answer_text_bytes = text_bytes;
        stored.open_request.clear();
        return absl::OkStatus();
      }));
  v1::EndTurnResponse response;
  response.set_version(session.record.version);
  return response;
}

absl::StatusOr<v1::GetTurnResponse> TurnBook::GetTurn(const v1::GetTurnRequest& request) {
  KVIST_RETURN_IF_ERROR(CheckId("turn_id", request.turn_id(), EmptyId::kAllowed));
  KVIST_ASSIGN_OR_RETURN(const StoredSession session, Read(request.session_id(), History::kRead));
  const cm::SessionRecord& record = session.record;
  const std::span<const int32_t> tokens(record.token_ids);
  const TurnId turn(request.turn_id());
  v1::GetTurnResponse response;
  *response.mutable_cache() = CacheOf(record);
  if (record.open_turn.has_value() && (turn.empty() || record.open_turn->id == turn)) {
    response.set_open(true);
    response.set_request(session.open_request);
    response.set_seed(record.open_turn->seed);
    AddIds(tokens, response.mutable_history_ids());
    return response;
  }
  if (record.last_turn.empty() || (!turn.empty() && record.last_turn != turn)) {
    return absl::NotFoundError("no such turn");
  }
  // A truncation may have cut into the answer.
  const size_t answer = std::min<size_t>(session.last_answer_tokens, tokens.size());
  AddIds(tokens.first(tokens.size() - answer), response.mutable_history_ids());
  AddIds(tokens.last(answer), response.mutable_generated_ids());
  response.set_reason(FinishToProto(record.last_finish));
  if (session.last_answer_text_bytes.has_value()) {
    response.set_answer_text_bytes(*session.last_answer_text_bytes);
  }
  return response;
}

absl::StatusOr<v1::Session> TurnBook::Create(const v1::CreateSessionRequest& request) {
  KVIST_RETURN_IF_ERROR(CheckId("id", request.id(), EmptyId::kAllowed));
  int64_t ttl_seconds = kDefaultTtlSeconds;
  if (request.has_ttl_seconds()) ttl_seconds = request.ttl_seconds();
  StoredSession session;
  session.record.id = SessionId(request.id().empty() ? DrawId("s-") : request.id());
  KVIST_RETURN_IF_ERROR(TakeCacheParams(request.cache(), session.record));
  return CreateStored(std::move(session), ttl_seconds);
}

absl::StatusOr<v1::Session> TurnBook::Restore(const v1::RestoreSessionRequest& request) {
  KVIST_RETURN_IF_ERROR(CheckId("id", request.id(), EmptyId::kRefused));
  if (request.model_fingerprint().empty() && request.history_ids_size() > 0) {
    return InvalidField("model_fingerprint", "must be set with a history");
  }
  StoredSession session;
  session.record.id = SessionId(request.id());
  session.record.model = request.model_fingerprint();
  session.record.token_ids.assign(request.history_ids().begin(), request.history_ids().end());
  session.turns = request.turns();
  KVIST_RETURN_IF_ERROR(TakeCacheParams(request.cache(), session.record));
  return CreateStored(std::move(session), request.ttl_seconds());
}

absl::StatusOr<v1::Session> TurnBook::CreateStored(StoredSession session, int64_t ttl_seconds) {
  if (ttl_seconds < 1 || ttl_seconds > kMaxTtlSeconds) {
    return InvalidField("ttl_seconds", absl::StrCat("must be 1 .. ", kMaxTtlSeconds));
  }
  session.record.version = 1;
  session.record.created_wall_ms = NowMs();
  session.record.last_used_wall_ms = session.record.created_wall_ms;
  session.record.time_to_live_ms = ttl_seconds * 1000;
  const MonotonicTime begin = clock_->Now();
  KVIST_RETURN_IF_ERROR(store_->Create(session));
  metrics_->store_write_seconds.Observe(SecondsBetween(begin, clock_->Now()));
  return ToProto(session, static_cast<int64_t>(session.record.token_ids.size()));
}

absl::StatusOr<v1::Session> TurnBook::Get(const v1::GetSessionRequest& request) {
  KVIST_RETURN_IF_ERROR(CheckId("id", request.id(), EmptyId::kRefused));
  if (request.include_history()) {
    KVIST_ASSIGN_OR_RETURN(const StoredSession session, Read(request.id(), History::kRead));
    v1::Session message = ToProto(session, static_cast<int64_t>(session.record.token_ids.size()));
    AddIds(session.record.token_ids, message.mutable_history_ids());
    return message;
  }
  KVIST_ASSIGN_OR_RETURN(const auto summary, store_->Summarize(SessionId(request.id())));
  if (cm::IsExpired(summary.session.record, NowMs())) {
    return absl::NotFoundError(absl::StrCat("session '", request.id(), "' has expired"));
  }
  return ToProto(summary.session, summary.history_tokens);
}

absl::StatusOr<v1::ListSessionsResponse> TurnBook::List(const v1::ListSessionsRequest& request) {
  KVIST_RETURN_IF_ERROR(CheckId("page_token", request.page_token(), EmptyId::kAllowed));
  if (request.page_size() < 0 || request.page_size() > kMaxPageSize) {
    return InvalidField("page_size", absl::StrCat("must be 0 .. ", kMaxPageSize));
  }
  const int32_t size = request.page_size() == 0 ? kDefaultPageSize : request.page_size();
  KVIST_ASSIGN_OR_RETURN(const auto page,
                         store_->List(SessionId(request.page_token()), static_cast<size_t>(size)));
  v1::ListSessionsResponse response;
  const int64_t now_ms = NowMs();
  for (const SessionStore::Summary& summary : page) {
    if (cm::IsExpired(summary.session.record, now_ms)) continue;
    *response.add_sessions() = ToProto(summary.session, summary.history_tokens);
  }
  if (page.size() == static_cast<size_t>(size)) {
    response.set_next_page_token(page.back().session.record.id.value());
  }
  return response;
}

absl::StatusOr<v1::Session> TurnBook::Cut(const std::string& id,
                                          const cm::TruncateSessionRequest& cut,
                                          std::optional<uint64_t> expected_version) {
  KVIST_RETURN_IF_ERROR(CheckId("id", id, EmptyId::kRefused));
  KVIST_ASSIGN_OR_RETURN(
      const StoredSession session,
      Change(id, HistoryWrite::kReplace, [&](StoredSession& stored) -> absl::Status {
        cm::SessionRecord& record = stored.record;
        if (expected_version.has_value() && *expected_version != record.version) {
          return absl::AbortedError(
              absl::StrCat("the session changed; it is at version ", record.version));
        }
        const uint64_t before = record.token_ids.size();
        KVIST_RETURN_IF_ERROR(cm::TruncateSession(cut, NowMs(), record));
        // The answer is the history's end.
        const uint64_t off_the_end =
            cut.kept == cm::TruncateSessionRequest::Kept::kFirst ? before - cut.tokens : 0;
        stored.last_answer_tokens -= std::min(stored.last_answer_tokens, off_the_end);
        stored.last_answer_tokens = std::min(stored.last_answer_tokens, cut.tokens);
        stored.open_request.clear();
        if (cut.tokens == 0) {  // nothing ties it to a model any more
          record.model.clear();
          stored.turns = 0;
        }
        return absl::OkStatus();
      }));
  return ToProto(session, static_cast<int64_t>(session.record.token_ids.size()));
}

absl::StatusOr<v1::Session> TurnBook::Reset(const v1::ResetSessionRequest& request) {
  return Cut(
      request.id(), {.tokens = 0},
      request.has_expected_version() ? std::optional(request.expected_version()) : std::nullopt);
}

absl::StatusOr<v1::Session> TurnBook::Truncate(const v1::TruncateSessionRequest& request) {
  cm::TruncateSessionRequest cut;
  int64_t tokens = 0;
  switch (request.kept_case()) {
    case v1::TruncateSessionRequest::kKeepLastTokens:
      cut.kept = cm::TruncateSessionRequest::Kept::kLast;
      tokens = request.keep_last_tokens();
      break;
    case v1::TruncateSessionRequest::kKeepFirstTokens:
      cut.kept = cm::TruncateSessionRequest::Kept::kFirst;
      tokens = request.keep_first_tokens();
      break;
    case v1::TruncateSessionRequest::KEPT_NOT_SET:
      return InvalidField("kept", "set keep_last_tokens or keep_first_tokens");
  }
  if (tokens < 0) return InvalidField("kept", "must not be negative");
  cut.tokens = static_cast<uint64_t>(tokens);
  return Cut(
      request.id(), cut,
      request.has_expected_version() ? std::optional(request.expected_version()) : std::nullopt);
}

absl::StatusOr<v1::Session> TurnBook::Fork(const v1::ForkSessionRequest& request) {
  KVIST_RETURN_IF_ERROR(CheckId("id", request.id(), EmptyId::kRefused));
  KVIST_RETURN_IF_ERROR(CheckId("new_id", request.new_id(), EmptyId::kAllowed));
  KVIST_ASSIGN_OR_RETURN(StoredSession session, Read(request.id(), History::kRead));
  if (request.has_expected_version() && request.expected_version() != session.record.version) {
    return absl::AbortedError(
        absl::StrCat("the session changed; it is at version ", session.record.version));
  }
  const SessionId id(request.new_id().empty() ? DrawId("s-") : request.new_id());
  KVIST_RETURN_IF_ERROR(cm::ForkSession(id, NowMs(), session.record));
  session.open_request.clear();
  const MonotonicTime begin = clock_->Now();
  KVIST_RETURN_IF_ERROR(store_->Create(session));
  metrics_->store_write_seconds.Observe(SecondsBetween(begin, clock_->Now()));
  return ToProto(session, static_cast<int64_t>(session.record.token_ids.size()));
}

absl::Status TurnBook::Delete(const v1::DeleteSessionRequest& request) {
  KVIST_RETURN_IF_ERROR(CheckId("id", request.id(), EmptyId::kRefused));
  const MonotonicTime begin = clock_->Now();
  KVIST_RETURN_IF_ERROR(store_->Delete(SessionId(request.id())));
  metrics_->store_write_seconds.Observe(SecondsBetween(begin, clock_->Now()));
  return absl::OkStatus();
}

bool TurnBook::Knows(const SessionId& id) { return store_->Summarize(id).ok(); }

absl::StatusOr<bool> TurnBook::IsGone(const SessionId& id) {
  const absl::Status status = store_->Summarize(id).status();
  if (status.ok()) return false;
  if (absl::IsNotFound(status)) return true;
  return status;
}

std::vector<SessionId> TurnBook::DeleteExpired() {
  auto expired = store_->DeleteExpired(NowMs(), kMaxExpiredPerRound);
  if (expired.ok()) return *std::move(expired);
  LogWarning("expired sessions could not be erased: {}", expired.status().ToString());
  return {};
}

}  // namespace kvist::services
