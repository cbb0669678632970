#include "services/frontend/response_sink.h"

#include <utility>

namespace kvist::services {

ResponseSink::ResponseSink(ClientStream* client, OutputText text, Options options)
    : client_(client), text_(std::move(text)), options_(std::move(options)) {}

bool ResponseSink::Gone() {
  return client_->Gone() || (options_.cancelled && options_.cancelled());
}

bool ResponseSink::OnStarted(const std::string& worker_id) {
  v1::GenerateResponse response;
  *response.mutable_started() = options_.started;
  response.mutable_started()->set_worker_id(worker_id);
  return client_->Write(response);
}

bool ResponseSink::OnProgress(int64_t prompt_tokens_done, int64_t prompt_tokens) {
  v1::GenerateResponse response;
  response.mutable_progress()->set_prompt_tokens_done(prompt_tokens_done);
  response.mutable_progress()->set_prompt_tokens(prompt_tokens);
  return client_->Write(response);
}

RelaySink::Verdict ResponseSink::OnTokens(std::span<const v1::Token> tokens) {
  if (options_.metrics != nullptr) {
    const MonotonicTime now = options_.clock->Now();
    if (last_token_at_ != MonotonicTime()) {
      // Tokens that came together share the time since the last ones.
      const double each = SecondsBetween(last_token_at_, now) / static_cast<double>(tokens.size());
      for (size_t i = 0; i < tokens.size(); ++i) {
        options_.metrics->inter_token_latency_seconds.Observe(each);
      }
    }
    last_token_at_ = now;
  }
  std::vector<VisibleToken> visible;
  for (const v1::Token& token : tokens) {
    ended_ = text_.Push(token, &visible);
    if (ended_) break;
  }
  if (!Send(std::move(visible))) return Verdict::kGone;
  return ended_ ? Verdict::kStop : Verdict::kGoOn;
}

bool ResponseSink::Flush() {
  if (ended_) return true;
  std::vector<VisibleToken> visible;
  ended_ = text_.Finish(&visible);
  Send(std::move(visible));
  return ended_;
}

bool ResponseSink::Send(std::vector<VisibleToken> visible) {
  v1::GenerateResponse response;
  v1::Delta& delta = *response.mutable_delta();
  delta.set_sample(options_.sample);
  for (VisibleToken& token : visible) {
    const int64_t room = options_.max_text_bytes - text_bytes_;
    if (static_cast<int64_t>(token.text.size()) > room) {
      token.text.resize(static_cast<size_t>(room));
    }
    text_bytes_ += static_cast<int64_t>(token.text.size());
    if (token.token.has_value()) {
      kept_ids_.push_back(token.token->id());
      if (token.token->index() < options_.first_index) continue;
      *delta.add_tokens() = *std::move(token.token);
    }
    delta.mutable_text()->append(token.text);
  }
  if (delta.tokens().empty() && delta.text().empty()) return true;
  return client_->Write(response);
}

}  // namespace kvist::services
