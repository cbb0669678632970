#include "services/worker/generate_stream.h"

#include <gtest/gtest.h>

#include <vector>

#include "common/base/status.h"

namespace kvist::services {
namespace {

class GenerateStreamTest : public testing::Test {
 protected:
  std::shared_ptr<GenerateStream> Create() {
    return GenerateStream::Create(
        {.relay = &relay_,
         .cancel = [this](const worker::TokenSink* sink) { cancelled_.push_back(sink); }});
  }

  SystemClock clock_;
  StreamRelay relay_{&clock_};
  std::vector<const worker::TokenSink*> cancelled_;
};

TEST_F(GenerateStreamTest, AClientThatLeavesCancelsItsOwnRequest) {
  const auto stream = Create();
  stream->OnCancel();
  EXPECT_EQ(cancelled_, std::vector<const worker::TokenSink*>{stream.get()});
  stream->OnDone();
}

// Its id is the one of a live request, which must not be ended for it.
TEST_F(GenerateStreamTest, ARefusedRequestCancelsNothing) {
  const auto stream = Create();
  stream->Refuse(absl::AbortedError("a live request has this id"));
  stream->OnCancel();
  EXPECT_TRUE(cancelled_.empty());
  stream->OnDone();
}

TEST_F(GenerateStreamTest, ARequestThatHasEndedCancelsNothing) {
  const auto stream = Create();
  stream->OnFinished({.reason = worker::FinishReason::kLength});
  stream->OnCancel();
  EXPECT_TRUE(cancelled_.empty());
  stream->OnDone();
}

}  // namespace
}  // namespace kvist::services
