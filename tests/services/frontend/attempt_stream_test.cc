#include "services/frontend/attempt_stream.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>

#include "tests/services/frontend/scripted_worker.h"

namespace kvist::services {
namespace {

using std::chrono::milliseconds;

constexpr int64_t kTokensPerMessage = 200;

// Waits until `value` has not changed for a while, and returns it.
int64_t Settled(const std::atomic<int64_t>& value) {
  Mutex mutex;
  CondVar never;
  int64_t last = -1;
  while (last != value.load()) {
    last = value.load();
    MutexLock lock(mutex);
    never.WaitUntil(mutex, std::chrono::steady_clock::now() + milliseconds(300));
  }
  return last;
}

MonotonicTime Soon() { return std::chrono::steady_clock::now() + std::chrono::seconds(20); }

AttemptStream::Options Options(size_t max_buffered_bytes) {
  return {.deadline = std::chrono::system_clock::now() + std::chrono::seconds(60),
          .max_buffered_bytes = max_buffered_bytes};
}

class AttemptStreamTest : public ::testing::Test {
 protected:
  std::atomic<int64_t> sent_ = 0;
  // Sends messages until nobody takes them any more, or `messages_` are out.
  ScriptedWorker worker_{"a", [this](ScriptStream& stream) {
                           for (; sent_ < messages_ && !stream.cancelled(); ++sent_) {
                             stream.Tokens(sent_ * kTokensPerMessage,
                                           (sent_ + 1) * kTokensPerMessage);
                           }
                           return grpc::Status::OK;
                         }};
  std::shared_ptr<v1::Worker::StubInterface> stub_ =
      v1::Worker::NewStub(ConnectTo(worker_.address()));
  std::atomic<int64_t> messages_ = 20'000;
};

TEST_F(AttemptStreamTest, WorkerWaitsForAReaderThatDoesNotRead) {
  AttemptStream stream(stub_.get(), v1::WorkerGenerateRequest(), Options(4096));
  // Some wait here, some in gRPC's windows (64 KiB and what it grows to); never all 20 MB.
  EXPECT_LT(Settled(sent_), 10'000);
}

TEST_F(AttemptStreamTest, EveryMessageComesInOrderThroughASmallBuffer) {
  messages_ = 300;
  AttemptStream stream(stub_.get(), v1::WorkerGenerateRequest(), Options(2000));
  v1::WorkerGenerateResponse message;
  absl::Status status = absl::UnknownError("not ended");
  int64_t next = 0;
  while (stream.Next(Soon(), &message, &status) == AttemptStream::Event::kMessage) {
    for (const v1::Token& token : message.tokens().tokens()) ASSERT_EQ(token.index(), next++);
  }
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(next, 300 * kTokensPerMessage);
}

TEST_F(AttemptStreamTest, DestructionInEveryStateEndsTheCall) {
  v1::WorkerGenerateResponse message;
  absl::Status status;
  for (int read = 0; read < 40; ++read) {
    sent_ = 0;
    AttemptStream stream(stub_.get(), v1::WorkerGenerateRequest(), Options(2000));
    for (int i = 0; i < read; ++i) stream.Next(Soon(), &message, &status);
  }
  worker_.Stop();
  EXPECT_EQ(worker_.calls(), worker_.ended_calls());
}

// The read on its way at destruction may be the one that fills the buffer.
TEST_F(AttemptStreamTest, DestructionWhileTheBufferFillsEndsTheCall) {
  for (int i = 0; i < 300; ++i) {
    sent_ = 0;
    AttemptStream stream(stub_.get(), v1::WorkerGenerateRequest(), Options(1));
    if (i % 3 == 0) continue;
    v1::WorkerGenerateResponse message;
    absl::Status status;
    for (int read = 0; read < i % 5; ++read) stream.Next(Soon(), &message, &status);
  }
}

TEST_F(AttemptStreamTest, TimeoutIsNoEnd) {
  messages_ = 0;
  ScriptedWorker silent("b", [](ScriptStream& stream) {
    stream.StaySilent();
    return grpc::Status::OK;
  });
  const auto stub = v1::Worker::NewStub(ConnectTo(silent.address()));
  AttemptStream stream(stub.get(), v1::WorkerGenerateRequest(), Options(2000));
  v1::WorkerGenerateResponse message;
  absl::Status status;
  EXPECT_EQ(stream.Next(std::chrono::steady_clock::now() + milliseconds(50), &message, &status),
            AttemptStream::Event::kTimeout);
}

}  // namespace
}  // namespace kvist::services
