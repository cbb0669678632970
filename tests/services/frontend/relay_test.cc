#include "services/frontend/relay.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "common/base/status.h"
#include "tests/services/frontend/scripted_worker.h"

namespace kvist::services {
namespace {

using std::chrono::milliseconds;

// Offers the workers in their order, leaving out those that failed.
class ListChooser final : public WorkerChooser {
 public:
  explicit ListChooser(std::vector<ScriptedWorker*> workers) {
    for (ScriptedWorker* worker : workers) {
      ids_.push_back(worker->id());
      stubs_.push_back(v1::Worker::NewStub(ConnectTo(worker->address())));
    }
  }
  absl::StatusOr<ChosenWorker> Choose(const WorkerLives& failed) override {
    for (size_t i = 0; i < ids_.size(); ++i) {
      if (!failed.contains({ids_[i], 1})) {
        return ChosenWorker{.id = ids_[i],
                            .incarnation = 1,
                            .stub = stubs_[i],
                            .located_tokens = static_cast<int64_t>(10 * (i + 1))};
      }
    }
    return Unavailable(ErrorReason::kNoWorker, "none");
  }
  void MarkFailed(const ChosenWorker& worker) override { marked.push_back(worker.id); }

  std::vector<std::string> marked;

 private:
  std::vector<std::string> ids_;
  std::vector<std::shared_ptr<v1::Worker::StubInterface>> stubs_;
};

class RecordingRelaySink final : public RelaySink {
 public:
  bool Gone() override { return gone; }
  bool OnStarted(const std::string& worker_id) override {
    started.push_back(worker_id);
    return true;
  }
  bool OnProgress(int64_t done, int64_t) override {
    progress.push_back(done);
    return true;
  }
  Verdict OnTokens(std::span<const v1::Token> batch) override {
    for (const v1::Token& token : batch) tokens.push_back(token);
    if (stop_at > 0 && tokens.size() >= stop_at) return Verdict::kStop;
    if (gone_at > 0 && tokens.size() >= gone_at) gone = true;
    return gone ? Verdict::kGone : Verdict::kGoOn;
  }

  size_t stop_at = 0;
  size_t gone_at = 0;
  std::atomic<bool> gone = false;
  std::vector<std::string> started;
  std::vector<int64_t> progress;
  std::vector<v1::Token> tokens;
};

constexpr int64_t kMost = 10;

RelayRequest Request() {
  RelayRequest request;
  request.base.set_request_id("r");
  for (int32_t id : {1, 2, 3}) request.base.add_prompt_ids(id);
  request.base.mutable_stop()->set_max_new_tokens(kMost);
  request.deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  request.vocabulary = kLetterVocabularySize;
  request.is_stop = [](int32_t id) { return id == kEndId; };
  return request;
}

RelayOptions Options() {
  RelayOptions options;
  options.silence_limit = milliseconds(300);
  options.replay_wait = milliseconds(300);
  options.first_wait = milliseconds(100);
  return options;
}

// Goes on from what earlier attempts delivered, to the end.
grpc::Status Complete(ScriptStream& stream) {
  stream.Accept();
  stream.Tokens(stream.request().generated_ids_size(), kMost);
  stream.Finish(v1::LENGTH);
  return grpc::Status::OK;
}

grpc::Status DieAfterFour(ScriptStream& stream) {
  stream.Accept();
  stream.Tokens(0, 4);
  return grpc::Status(grpc::StatusCode::UNAVAILABLE, "killed");
}

// No gap, no repeat, and every token is the model's.
void ExpectTokens(const RecordingRelaySink& sink, int64_t count) {
  ASSERT_EQ(sink.tokens.size(), static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    EXPECT_EQ(sink.tokens[i].index(), i);
    EXPECT_EQ(sink.tokens[i].id(), ScriptStream::TokenOf(i));
  }
}

class RelayTest : public ::testing::Test {
 protected:
  RelayResult Run(std::vector<ScriptedWorker*> workers) {
    chooser_ = std::make_unique<ListChooser>(std::move(workers));
    return RunRelay(request_, options_, *chooser_, sink_, clock_);
  }

  SystemClock clock_;
  RelayRequest request_ = Request();
  RelayOptions options_ = Options();
  RecordingRelaySink sink_;
  std::unique_ptr<ListChooser> chooser_;
};

TEST_F(RelayTest, OneWorkerToTheEnd) {
  ScriptedWorker worker("a", &Complete);
  const RelayResult result = Run({&worker});
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.reason, v1::LENGTH);
  EXPECT_EQ(result.attempts, 1u);
  EXPECT_EQ(sink_.started, std::vector<std::string>{"a"});
  ExpectTokens(sink_, kMost);
}

TEST_F(RelayTest, ThePromiseIsThatOfTheWorkerThatTookTheRequest) {
  ScriptedWorker full("a", [](ScriptStream&) {
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
  });
  ScriptedWorker other("b", [](ScriptStream& stream) {
    stream.Accept();
    stream.Tokens(0, kMost);
    stream.Finish(v1::LENGTH, 2);
    return grpc::Status::OK;
  });
  const RelayResult result = Run({&full, &other});
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.attempts, 1u);
  EXPECT_EQ(result.worker_id, "b");
  EXPECT_EQ(result.worker_incarnation, 1u);
  EXPECT_EQ(result.located_tokens, 20);
  EXPECT_TRUE(result.has_usage);
  EXPECT_EQ(result.usage.cached_tokens(), 2);
}

TEST_F(RelayTest, AnAnswerThatIsCutHasNoUsageOfItsWorker) {
  sink_.stop_at = 3;
  ScriptedWorker worker("a", &Complete);
  EXPECT_FALSE(Run({&worker}).has_usage);
}

TEST_F(RelayTest, WorkerThatDiesIsReplayedWithoutGapOrRepeat) {
  ScriptedWorker dying("a", &DieAfterFour);
  std::atomic<int> replayed_ids = -1;
  std::atomic<uint32_t> attempt = 0;
  ScriptedWorker other("b", [&](ScriptStream& stream) {
    replayed_ids = stream.request().generated_ids_size();
    attempt = stream.request().attempt();
    return Complete(stream);
  });
  const RelayResult result = Run({&dying, &other});
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(replayed_ids, 4);
  EXPECT_EQ(attempt, 2u);
  EXPECT_EQ(result.attempts, 2u);
  EXPECT_EQ(sink_.started, std::vector<std::string>{"a"});
  EXPECT_EQ(chooser_->marked, std::vector<std::string>{"a"});
  ExpectTokens(sink_, kMost);
}

TEST_F(RelayTest, StreamThatEndsWithoutItsLastMessageIsALostWorker) {
  ScriptedWorker dying("a", [](ScriptStream& stream) {
    stream.Accept();
    stream.Tokens(0, 2);
    return grpc::Status::OK;
  });
  ScriptedWorker other("b", &Complete);
  EXPECT_TRUE(Run({&dying, &other}).status.ok());
  ExpectTokens(sink_, kMost);
}

TEST_F(RelayTest, SilentWorkerIsLeftForAnother) {
  ScriptedWorker silent("a", [](ScriptStream& stream) {
    stream.Accept();
    stream.Tokens(0, 3);
    stream.StaySilent();
    return grpc::Status::OK;
  });
  ScriptedWorker other("b", &Complete);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_TRUE(Run({&silent, &other}).status.ok());
  EXPECT_GE(std::chrono::steady_clock::now() - start, options_.silence_limit);
  ExpectTokens(sink_, kMost);
}

TEST_F(RelayTest, ProgressAloneKeepsAWorkerAlive) {
  options_.silence_limit = milliseconds(200);
  ScriptedWorker slow("a", [](ScriptStream& stream) {
    stream.Accept();
    Mutex mutex;
    CondVar never;
    for (int i = 0; i < 8; ++i) {
      MutexLock lock(mutex);
      never.WaitUntil(mutex, std::chrono::steady_clock::now() + milliseconds(60));
      stream.Progress(i);
    }
    stream.Tokens(0, kMost);
    stream.Finish(v1::LENGTH);
    return grpc::Status::OK;
  });
  const RelayResult result = Run({&slow});
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.attempts, 1u);
  EXPECT_EQ(sink_.progress.size(), 8u);
}

TEST_F(RelayTest, RepeatedTokensAreDropped) {
  ScriptedWorker repeating("a", [](ScriptStream& stream) {
    stream.Accept();
    stream.Tokens(0, 5);
    stream.Tokens(2, 7);
    stream.Tokens(7, kMost);
    stream.Finish(v1::LENGTH);
    return grpc::Status::OK;
  });
  EXPECT_TRUE(Run({&repeating}).status.ok());
  ExpectTokens(sink_, kMost);
}

TEST_F(RelayTest, GapIsNeverPassedOn) {
  ScriptedWorker leaping("a", [](ScriptStream& stream) {
    stream.Accept();
    stream.Tokens(0, 3);
    stream.Tokens(5, kMost);
    stream.Finish(v1::LENGTH);
    return grpc::Status::OK;
  });
  ScriptedWorker other("b", &Complete);
  const RelayResult result = Run({&leaping, &other});
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.attempts, 2u);
  ExpectTokens(sink_, kMost);
}

TEST_F(RelayTest, MessagesOfAnotherAttemptAreDropped) {
  ScriptedWorker confused("a", [](ScriptStream& stream) {
    stream.Accept();
    stream.Tokens(0, kMost, stream.request().attempt() + 1);
    stream.Tokens(0, 1, 0);
    stream.Tokens(0, kMost);
    stream.Finish(v1::LENGTH);
    return grpc::Status::OK;
  });
  EXPECT_TRUE(Run({&confused}).status.ok());
  ExpectTokens(sink_, kMost);
}

TEST_F(RelayTest, EndLostAfterTheLastTokenNeedsNoReplay) {
  ScriptedWorker dying("a", [](ScriptStream& stream) {
    stream.Accept();
    stream.Tokens(0, kMost);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "killed");
  });
  ScriptedWorker other("b", &Complete);
  const RelayResult result = Run({&dying, &other});
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.reason, v1::LENGTH);
  EXPECT_EQ(other.calls(), 0);
}

TEST_F(RelayTest, LostWithoutReplacementTellsWhereToResume) {
  ScriptedWorker dying("a", [](ScriptStream& stream) {
    stream.Accept();
    const int from = stream.request().generated_ids_size();
    if (from == 0) stream.Tokens(0, 4);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "killed");
  });
  const RelayResult result = Run({&dying});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(DetailsOf(result.status).resume_index, 4);
  EXPECT_EQ(result.reason, v1::ERROR);
  EXPECT_GT(dying.calls(), 1);  // it might have come back
}

// Without a Finished, INTERNAL is the connection's end, not the request's.
TEST_F(RelayTest, RequestThatKillsWorkersIsGivenUp) {
  options_.replay_wait = milliseconds(60'000);
  ScriptedWorker dying("a", [](ScriptStream& stream) {
    stream.Accept();
    return grpc::Status(grpc::StatusCode::INTERNAL, "broken");
  });
  const RelayResult result = Run({&dying});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(result.lost);
  EXPECT_EQ(dying.calls(), options_.max_fruitless_attempts);
}

grpc::Status Break(ScriptStream& stream) {
  stream.Finish(v1::ERROR);
  return grpc::Status(grpc::StatusCode::INTERNAL, "internal error 1");
}

TEST_F(RelayTest, BrokenInvariantIsTheRequestsEndAfterOneTryElsewhere) {
  const auto breaks = [](ScriptStream& stream) {
    stream.Accept();
    if (stream.request().generated_ids_size() == 0) stream.Tokens(0, 2);
    return Break(stream);
  };
  ScriptedWorker first("a", breaks);
  ScriptedWorker second("b", breaks);
  ScriptedWorker third("c", &Complete);
  const RelayResult result = Run({&first, &second, &third});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(result.reason, v1::ERROR);
  EXPECT_FALSE(result.lost);
  EXPECT_TRUE(chooser_->marked.empty());  // they live
  EXPECT_EQ(first.calls() + second.calls(), 2);
  EXPECT_EQ(third.calls(), 0);
  ExpectTokens(sink_, 2);
}

TEST_F(RelayTest, BrokenAtTheOnlyWorkerIsNotTriedThereAgain) {
  options_.replay_wait = milliseconds(60'000);
  ScriptedWorker only("a", [](ScriptStream& stream) {
    stream.Accept();
    return Break(stream);
  });
  const RelayResult result = Run({&only});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(only.calls(), 1);
  EXPECT_TRUE(chooser_->marked.empty());
}

TEST_F(RelayTest, BrokenAtOneWorkerMayEndWellAtAnother) {
  ScriptedWorker first("a", [](ScriptStream& stream) {
    stream.Accept();
    stream.Tokens(0, 3);
    return Break(stream);
  });
  ScriptedWorker second("b", &Complete);
  EXPECT_TRUE(Run({&first, &second}).status.ok());
  EXPECT_TRUE(chooser_->marked.empty());
  ExpectTokens(sink_, kMost);
}

TEST_F(RelayTest, NobodyListensIsNoWorker) {
  ScriptedWorker gone("a", &Complete);
  gone.Stop();
  const RelayResult result = Run({&gone});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(DetailsOf(result.status).reason, ErrorReason::kNoWorker);
  EXPECT_EQ(result.attempts, 0u);
}

TEST_F(RelayTest, FullWorkerIsLeftForAnotherAndAllFullIsTold) {
  const auto full = [](ScriptStream&) {
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
  };
  ScriptedWorker first("a", full);
  ScriptedWorker second("b", &Complete);
  EXPECT_TRUE(Run({&first, &second}).status.ok());
  EXPECT_TRUE(chooser_->marked.empty());  // full is not lost
  EXPECT_EQ(Run({&first}).status.code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(RelayTest, RefusalIsTheClientsAndNotTriedElsewhere) {
  ScriptedWorker refusing(
      "a", [](ScriptStream&) { return grpc::Status(grpc::StatusCode::OUT_OF_RANGE, "too long"); });
  ScriptedWorker other("b", &Complete);
  EXPECT_EQ(Run({&refusing, &other}).status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(other.calls(), 0);
}

TEST_F(RelayTest, RefusalOfAnAnswerThatHasBegunIsTriedElsewhere) {
  ScriptedWorker dying("a", &DieAfterFour);
  ScriptedWorker refusing("b", [](ScriptStream&) {
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "another format");
  });
  ScriptedWorker third("c", &Complete);
  const RelayResult result = Run({&dying, &refusing, &third});
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(refusing.calls(), 1);
  ExpectTokens(sink_, kMost);
}

TEST_F(RelayTest, NameOfARunningRequestIsTheClientsMistakeAndNoLostWorker) {
  ScriptedWorker busy("a", [](ScriptStream& stream) { return stream.NameTaken(); });
  ScriptedWorker other("b", &Complete);
  const RelayResult result = Run({&busy, &other});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(DetailsOf(result.status).field, "request_id");
  EXPECT_TRUE(chooser_->marked.empty());
  EXPECT_EQ(other.calls(), 0);
}

TEST_F(RelayTest, NameTakenByAnEarlierAttemptIsTriedElsewhere) {
  std::atomic<int> calls = 0;
  ScriptedWorker first("a", [&](ScriptStream& stream) {
    if (++calls > 1) return stream.NameTaken();
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "reset");
  });
  ScriptedWorker second("b", [&](ScriptStream& stream) {
    if (calls < 2) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "reset");
    return Complete(stream);
  });
  options_.first_wait = milliseconds(5000);
  EXPECT_TRUE(Run({&first, &second}).status.ok());
  ExpectTokens(sink_, kMost);
}

TEST_F(RelayTest, IdBeyondTheVocabularyIsAFaultyWorker) {
  for (const int32_t bad : {-1, kLetterVocabularySize}) {
    sink_.tokens.clear();
    ScriptedWorker faulty("a", [bad](ScriptStream& stream) {
      stream.Accept();
      stream.Tokens(0, 3);
      stream.TokenId(3, bad);
      stream.StaySilent();
      return grpc::Status::OK;
    });
    ScriptedWorker other("b", &Complete);
    const RelayResult result = Run({&faulty, &other});
    EXPECT_TRUE(result.status.ok()) << result.status;
    EXPECT_EQ(chooser_->marked, std::vector<std::string>{"a"});
    ExpectTokens(sink_, kMost);
  }
}

TEST_F(RelayTest, LostWorkerIsTriedAgainWithGrowingPauses) {
  options_.first_wait = milliseconds(1500);
  ScriptedWorker down(
      "a", [](ScriptStream&) { return grpc::Status(grpc::StatusCode::UNAVAILABLE, "starting"); });
  EXPECT_FALSE(Run({&down}).status.ok());
  EXPECT_GE(down.calls(), 4);
  EXPECT_LE(down.calls(), 8);  // 30 with a pause of 50 ms each
}

TEST_F(RelayTest, StopVerdictCancelsUpstream) {
  std::atomic<bool> cancelled = false;
  ScriptedWorker worker("a", [&](ScriptStream& stream) {
    stream.Accept();
    stream.Tokens(0, 5);
    stream.StaySilent();
    cancelled = stream.cancelled();
    return grpc::Status::CANCELLED;
  });
  sink_.stop_at = 3;
  const RelayResult result = Run({&worker});
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.reason, v1::STOP);
  worker.Stop();
  EXPECT_TRUE(cancelled);
}

TEST_F(RelayTest, VanishedClientCancelsUpstream) {
  ScriptedWorker worker("a", [](ScriptStream& stream) {
    stream.Accept();
    stream.Tokens(0, 2);
    stream.StaySilent();
    return grpc::Status::CANCELLED;
  });
  sink_.gone_at = 1;
  const RelayResult result = Run({&worker});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(result.reason, v1::CANCELLED);
  worker.Stop();
  EXPECT_EQ(worker.ended_calls(), 1);
}

TEST_F(RelayTest, DeadlineEndsTheRequestWithWhatThereIs) {
  request_.deadline = std::chrono::steady_clock::now() + milliseconds(200);
  ScriptedWorker worker("a", [](ScriptStream& stream) {
    stream.Accept();
    stream.Tokens(0, 2);
    stream.StaySilent();
    return grpc::Status::CANCELLED;
  });
  const RelayResult result = Run({&worker});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(result.reason, v1::DEADLINE);
  ExpectTokens(sink_, 2);
}

}  // namespace
}  // namespace kvist::services
