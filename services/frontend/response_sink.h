// From the relay's tokens to the client's messages.
#ifndef KVIST_SERVICES_FRONTEND_RESPONSE_SINK_H_
#define KVIST_SERVICES_FRONTEND_RESPONSE_SINK_H_

#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "proto/kvist/v1/inference.pb.h"
#include "services/frontend/client_stream.h"
#include "services/frontend/output_text.h"
#include "services/frontend/relay.h"
#include "services/runtime/metrics.h"

namespace kvist::services {

// One request's. Single-threaded.
class ResponseSink final : public RelaySink {
 public:
  struct Options {
    v1::Started started;      // worker_id is filled in
    int32_t sample = 0;       // whose output it is
    int64_t first_index = 0;  // tokens before it are known to the client (Resume)
    // Text of all tokens beyond so many bytes is left out: where a stop string cut an ended turn.
    int64_t max_text_bytes = std::numeric_limits<int64_t>::max();
    std::function<bool()> cancelled;  // beside the client's leaving; may be empty
    FrontendMetrics* metrics = nullptr;
    const Clock* clock = nullptr;
  };
  // REQUIRES: client outlives it.
  ResponseSink(ClientStream* client, OutputText text, Options options);

  bool Gone() override;
  bool OnStarted(const std::string& worker_id) override;
  bool OnProgress(int64_t prompt_tokens_done, int64_t prompt_tokens) override;
  Verdict OnTokens(std::span<const v1::Token> tokens) override;

  // The relay has ended: lets held-back text go. Returns true if that completed a stop string.
  bool Flush();
  // Ids of the tokens that are part of the answer.
  const std::vector<int32_t>& kept_ids() const { return kept_ids_; }
  // Bytes of their text, that before first_index included.
  int64_t text_bytes() const { return text_bytes_; }

 private:
  bool Send(std::vector<VisibleToken> visible);

  ClientStream* const client_;
  OutputText text_;
  Options options_;
  bool ended_ = false;  // by a stop string
  std::vector<int32_t> kept_ids_;
  int64_t text_bytes_ = 0;
  MonotonicTime last_token_at_;
};

}  // namespace kvist::services

#endif  // KVIST_SERVICES_FRONTEND_RESPONSE_SINK_H_
