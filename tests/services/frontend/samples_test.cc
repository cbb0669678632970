#include "services/frontend/samples.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/services/frontend/scripted_worker.h"

namespace {

// How many threads its own may start before one is refused; negative: as many as it likes.
thread_local int threads_left = -1;

}  // namespace

// In the place of libc's, for every thread of the process.
extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                              void* (*run)(void*), void* argument) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  if (threads_left >= 0 && threads_left-- == 0) return EAGAIN;
  return create(thread, attributes, run, argument);
}

namespace kvist::services {
namespace {

using std::chrono::milliseconds;

constexpr int64_t kMost = 10;

// Offers the workers in their order, leaving out those that failed.
class ListChooser final : public WorkerChooser {
 public:
  explicit ListChooser(const std::vector<ScriptedWorker*>& workers) : workers_(workers) {}
  absl::StatusOr<ChosenWorker> Choose(const WorkerLives& failed) override {
    for (ScriptedWorker* worker : workers_) {
      if (failed.contains({worker->id(), 1})) continue;
      return ChosenWorker{.id = worker->id(),
                          .incarnation = 1,
                          .stub = v1::Worker::NewStub(ConnectTo(worker->address()))};
    }
    return Unavailable(ErrorReason::kNoWorker, "none");
  }
  void MarkFailed(const ChosenWorker&) override {}

 private:
  const std::vector<ScriptedWorker*> workers_;
};

// A client that keeps what it gets. Used by one thread at a time, which is what is tested.
class RecordingClient final : public ClientStream {
 public:
  bool Write(const v1::GenerateResponse& response) override {
    EXPECT_FALSE(busy_.exchange(true)) << "two threads write at once";
    responses.push_back(response);
    busy_ = false;
    return true;
  }
  bool Gone() override { return gone; }

  std::atomic<bool> gone = false;
  std::vector<v1::GenerateResponse> responses;

 private:
  std::atomic<bool> busy_ = false;
};

// One that does not read sample 0's first delta until somebody asks whether it is gone, for a
// second at most.
class StuckClient final : public ClientStream {
 public:
  bool Write(const v1::GenerateResponse& response) override {
    const auto most = std::chrono::steady_clock::now() + std::chrono::seconds(1);
    MutexLock lock(mutex_);
    if (response.delta().sample() == 1) has_second_ = true;
    changed_.NotifyAll();
    if (!response.has_delta() || response.delta().sample() != 0 || was_stuck_) return true;
    was_stuck_ = stuck_ = true;
    while (!asked_ && changed_.WaitUntil(mutex_, most)) {
    }
    stuck_ = false;
    changed_.NotifyAll();
    return true;
  }
  bool Gone() override {
    MutexLock lock(mutex_);
    if (stuck_) asked_ = true;
    changed_.NotifyAll();
    return false;
  }
  bool asked_while_stuck() {
    MutexLock lock(mutex_);
    return asked_;
  }
  // Returns when sample 1 has written.
  void WaitForSecond() {
    MutexLock lock(mutex_);
    while (!has_second_) changed_.Wait(mutex_);
  }
  // Returns when that Write is over.
  void WaitUntilFree() {
    MutexLock lock(mutex_);
    while (!was_stuck_ || stuck_) changed_.Wait(mutex_);
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool has_second_ ABSL_GUARDED_BY(mutex_) = false;
  bool was_stuck_ ABSL_GUARDED_BY(mutex_) = false;
  bool stuck_ ABSL_GUARDED_BY(mutex_) = false;
  bool asked_ ABSL_GUARDED_BY(mutex_) = false;
};

class SamplesTest : public ::testing::Test {
 protected:
  SamplesTest() {
    options_.silence_limit = milliseconds(300);
    options_.replay_wait = milliseconds(300);
    options_.first_wait = milliseconds(100);
    request_.relay.base.set_request_id("r");
    for (int32_t id : {1, 2, 3}) request_.relay.base.add_prompt_ids(id);
    request_.relay.base.mutable_stop()->set_max_new_tokens(kMost);
    request_.relay.base.mutable_sampling()->set_sample_index(5);
    request_.relay.deadline = clock_.Now() + std::chrono::seconds(60);
    request_.relay.vocabulary = kLetterVocabularySize;
    request_.relay.is_stop = [](int32_t id) { return id == kEndId; };
    request_.make_sink = [this](int32_t sample, ClientStream* client) {
      return std::make_unique<ResponseSink>(client, OutputText(tokenizer_.get(), {}),
                                            ResponseSink::Options{.sample = sample});
    };
  }

  std::vector<SampleOutcome> Run(const std::vector<ScriptedWorker*>& workers, int samples) {
    for (int i = 0; i < samples; ++i) request_.session_ids.push_back("s" + std::to_string(i));
    request_.make_chooser = [workers] { return std::make_unique<ListChooser>(workers); };
    return RunSamples(request_, {options_, in_flight_, clock_}, *stream_);
  }
  // The call of each request as it came to a worker's script.
  void Note(const ScriptStream& stream) {
    MutexLock lock(mutex_);
    calls_.push_back(stream.request());
  }
  std::map<int32_t, v1::SampleFinished> Ends() const {
    std::map<int32_t, v1::SampleFinished> ends;
    for (const auto& response : client_.responses) {
      if (!response.has_sample_finished()) continue;
      const v1::SampleFinished& end = response.sample_finished();
      EXPECT_TRUE(ends.emplace(end.sample(), end).second);
    }
    return ends;
  }

  SystemClock clock_;
  RelayOptions options_;
  InFlight in_flight_;
  std::unique_ptr<const text::Tokenizer> tokenizer_ = LetterTokenizer();
  SamplesRequest request_;
  RecordingClient client_;
  ClientStream* stream_ = &client_;
  Mutex mutex_;
  std::vector<v1::WorkerGenerateRequest> calls_;
};

grpc::Status Complete(ScriptStream& stream) {
  stream.Accept();
  stream.Tokens(stream.request().generated_ids_size(), kMost);
  stream.Finish(v1::LENGTH, 2);
  return grpc::Status::OK;
}

TEST_F(SamplesTest, TheOthersFollowTheFirstOneToItsWorker) {
  ScriptedWorker full("a", [](ScriptStream&) {
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
  });
  ScriptedWorker taker("b", [this](ScriptStream& stream) {
    Note(stream);
    return Complete(stream);
  });
  const auto outcomes = Run({&full, &taker}, 3);
  EXPECT_EQ(full.calls(), 1);  // the others did not even ask
  ASSERT_EQ(outcomes.size(), 3u);
  for (const SampleOutcome& outcome : outcomes) {
    EXPECT_TRUE(outcome.result.status.ok()) << outcome.result.status;
    EXPECT_EQ(outcome.kept_ids.size(), static_cast<size_t>(kMost));
    EXPECT_EQ(outcome.text_bytes, kMost);
  }
  ASSERT_EQ(calls_.size(), 3u);
  EXPECT_EQ(calls_[0].request_id(), "r");
  EXPECT_EQ(calls_[0].fork_of(), "");
  std::sort(calls_.begin(), calls_.end(),
            [](const auto& a, const auto& b) { return a.request_id() < b.request_id(); });
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(calls_[i].session_id(), "s" + std::to_string(i));
    EXPECT_EQ(calls_[i].sampling().sample_index(), 5 + i);
    if (i == 0) continue;
    EXPECT_EQ(calls_[i].request_id(), "r." + std::to_string(i));
    EXPECT_EQ(calls_[i].fork_of(), "r");
  }
  EXPECT_EQ(Ends().size(), 3u);
  EXPECT_EQ(Ends()[2].worker_id(), "b");
  EXPECT_EQ(Ends()[2].cached_tokens(), 2);
  EXPECT_EQ(Ends()[2].generated_tokens(), kMost);
}

TEST_F(SamplesTest, StartedAndProgressAreToldOnceAndDeltasSayWhose) {
  ScriptedWorker worker("a", [](ScriptStream& stream) {
    stream.Accept();
    stream.Progress(1);
    stream.Tokens(0, kMost);
    stream.Finish(v1::LENGTH);
    return grpc::Status::OK;
  });
  Run({&worker}, 4);
  int started = 0, progress = 0;
  std::map<int32_t, int> tokens;
  for (const auto& response : client_.responses) {
    started += response.has_started();
    progress += response.has_progress();
    if (response.has_delta()) {
      tokens[response.delta().sample()] += response.delta().tokens_size();
    }
  }
  EXPECT_EQ(started, 1);
  EXPECT_EQ(progress, 1);
  EXPECT_TRUE(client_.responses[0].has_started());
  EXPECT_EQ(tokens, (std::map<int32_t, int>{{0, kMost}, {1, kMost}, {2, kMost}, {3, kMost}}));
}

TEST_F(SamplesTest, IfNoWorkerTakesTheFirstOneAllEndAsItDoes) {
  ScriptedWorker worker(
      "a", [](ScriptStream&) { return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "no"); });
  const auto outcomes = Run({&worker}, 3);
  EXPECT_EQ(worker.calls(), 1);
  for (const SampleOutcome& outcome : outcomes) {
    EXPECT_EQ(outcome.result.status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(outcome.result.reason, v1::ERROR);
    EXPECT_EQ(outcome.result.attempts, 0u);
  }
  EXPECT_TRUE(client_.responses.empty());
}

TEST_F(SamplesTest, OneThatIsRefusedLeavesTheOthers) {
  ScriptedWorker worker("a", [](ScriptStream& stream) {
    if (stream.request().request_id() == "r.1") {
      return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
    }
    return Complete(stream);
  });
  const auto outcomes = Run({&worker}, 3);
  EXPECT_TRUE(outcomes[0].result.status.ok());
  EXPECT_EQ(outcomes[1].result.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(outcomes[2].result.status.ok());
  EXPECT_EQ(Ends().size(), 2u);
}

TEST_F(SamplesTest, ALostStreamIsReplayedElsewhereAloneAndGoesOnFromItsTokens) {
  ScriptedWorker first("a", [](ScriptStream& stream) {
    if (stream.request().request_id() != "r.2") return Complete(stream);
    stream.Accept();
    stream.Tokens(0, 4);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone");
  });
  ScriptedWorker second("b", [this](ScriptStream& stream) {
    Note(stream);
    return Complete(stream);
  });
  const auto outcomes = Run({&first, &second}, 3);
  for (const SampleOutcome& outcome : outcomes) {
    EXPECT_TRUE(outcome.result.status.ok()) << outcome.result.status;
    EXPECT_EQ(outcome.kept_ids.size(), static_cast<size_t>(kMost));
  }
  ASSERT_EQ(calls_.size(), 1u);
  EXPECT_EQ(calls_[0].request_id(), "r.2");
  EXPECT_EQ(calls_[0].generated_ids_size(), 4);
  EXPECT_EQ(Ends()[2].attempts(), 2u);
  EXPECT_EQ(Ends()[2].worker_id(), "b");
}

TEST_F(SamplesTest, AClientThatIsGoneEndsAll) {
  ScriptedWorker worker("a", [this](ScriptStream& stream) {
    stream.Accept();
    stream.Tokens(0, 2);
    if (stream.request().request_id() == "r.2") client_.gone = true;
    stream.StaySilent();
    return grpc::Status::CANCELLED;
  });
  options_.silence_limit = milliseconds(30'000);
  for (const SampleOutcome& outcome : Run({&worker}, 3)) {
    EXPECT_EQ(outcome.result.reason, v1::CANCELLED);
    EXPECT_EQ(outcome.result.status.code(), absl::StatusCode::kCancelled);
  }
}

// The silence that counts is the worker's: not the time a sibling's answer takes to go out.
TEST_F(SamplesTest, AClientThatDoesNotReadMakesNoWorkerCountAsLost) {
  StuckClient client;
  stream_ = &client;
  ScriptedWorker worker("a", [&client](ScriptStream& stream) {
    stream.Accept();
    if (stream.request().request_id() == "r") {
      client.WaitForSecond();
    } else if (stream.request().attempt() == 1) {
      stream.Tokens(0, 1);
      client.WaitUntilFree();
    }
    stream.Tokens(stream.request().generated_ids_size(), kMost);
    stream.Finish(v1::LENGTH);
    return grpc::Status::OK;
  });
  for (const SampleOutcome& outcome : Run({&worker}, 2)) {
    EXPECT_TRUE(outcome.result.status.ok()) << outcome.result.status;
    EXPECT_EQ(outcome.result.attempts, 1u);
  }
  EXPECT_EQ(worker.calls(), 2);
  EXPECT_TRUE(client.asked_while_stuck());
}

TEST_F(SamplesTest, WhereThreadsRunOutASampleIsRefusedAndTheOthersRun) {
  ScriptedWorker worker("a", Complete);
  threads_left = 1;
  const auto outcomes = Run({&worker}, 4);
  ASSERT_LT(threads_left, 0);
  EXPECT_EQ(worker.calls(), 3);
  for (const size_t i : {0, 1, 3}) {
    EXPECT_TRUE(outcomes[i].result.status.ok()) << outcomes[i].result.status;
    EXPECT_EQ(outcomes[i].kept_ids.size(), static_cast<size_t>(kMost));
  }
  EXPECT_EQ(outcomes[2].result.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(outcomes[2].result.reason, v1::ERROR);
  EXPECT_EQ(outcomes[2].result.attempts, 0u);
  EXPECT_EQ(Ends().size(), 3u);
}

}  // namespace
}  // namespace kvist::services
