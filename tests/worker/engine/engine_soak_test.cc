// Minutes of random mixed load on an engine with its thread, a tiny model on the CPU backend and
// pools far too small: conversations of every kind at once, each answer held against the same
// request's alone, the manager's mirror against the pools, resident memory over the run.
// KVIST_SOAK_SECONDS sets the length: 2 minutes, 20 in a long run, a sixth of that
// under a sanitizer.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

#include "cache_manager/event_log.h"
#include "common/base/mutex.h"
#include "gtest/gtest.h"
#include "tests/support/hash_reference.h"
#include "tests/support/long_run.h"
#include "tests/support/naive_mirror.h"
#include "tests/support/random_requests.h"
#include "tests/support/recording_sink.h"
#include "tests/support/resident_memory.h"
#include "tests/support/simulated_clock.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"
#include "worker/engine/engine.h"
#include "worker/engine/engine_core.h"
#include "worker/engine/offload.h"

namespace kvist::worker {
namespace {

// Two attention spans among its layers, so two layer groups, each with a pool per format.
constexpr std::string_view kModel = "gemma3_a.Q4_0";
constexpr int64_t kLongestConversation = 250;  // its context is 256
constexpr size_t kConversations = 100;         // at any time
constexpr int kPlays = 6;                      // of a conversation, then another takes its place
constexpr size_t kClients = 32;
constexpr std::chrono::milliseconds kSampleEvery{100};
// Of resident memory over half the run.
constexpr int64_t kMostGrowthBytes = 1 << 20;

#ifdef KVIST_SANITIZED
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

std::chrono::seconds SoakLength() {
  const char* seconds = std::getenv("KVIST_SOAK_SECONDS");
  if (seconds != nullptr) return std::chrono::seconds(std::atol(seconds));
  const std::chrono::minutes usual(IsLongRun() ? 20 : 2);
  return kSanitized ? std::chrono::seconds(usual) / 6 : usual;
}

std::unique_ptr<Backend> OpenBackend(int32_t blocks_per_pool) {
  CpuBackendOptions options = kvist::testing::TinyOptions();
  options.kernels = "auto";
  options.kv_formats = {KvFormat::kF16, KvFormat::kQ8, KvFormat::kQ4};
  options.blocks_per_pool = blocks_per_pool;
  options.max_batch_tokens = 64;
  options.max_logit_rows = 64;
  return kvist::testing::OpenTinyModel(kModel, options);
}

// A request of a conversation and its answer, alone on an engine that has room and forgets.
struct Turn {
  GenerateRequest request;
  std::vector<TokenOutput> alone;
};

struct Conversation {
  std::vector<Turn> turns;
};

// Draws conversations and runs each turn alone. Single-threaded.
class LoneEngine {
 public:
  LoneEngine()
      : core_({.max_running_sequences = 1, .max_step_tokens = 64}, OpenBackend(64), &clock_),
        drawn_(AnswerDimensions().size()) {
    space_.vocab = static_cast<uint64_t>(core_.backend().model().vocab);
    for (const KvCache* format : core_.limits().formats) space_.formats.push_back(format->format());
    for (int32_t i = 0; i < 5; ++i) stems_.push_back(Ids(64, i));
  }

  const RequestSpace& space() const { return space_; }
  const std::vector<uint64_t>& drawn() const { return drawn_; }

  // Each turn's prompt is the whole conversation before it and what the user adds.
  Conversation Draw(std::mt19937_64& random) {
    GenerateRequest kind;
    kind.stop.max_new_tokens = static_cast<int64_t>(1 + random() % 90);
    DrawDimensions(AnswerDimensions(), space_, random, &kind, drawn_);
    const std::vector<int32_t>& stem = stems_[random() % stems_.size()];
    kind.prompt_ids.assign(stem.begin(), stem.begin() + static_cast<int64_t>(random() % 48));
    Conversation conversation;
    const size_t turns = 1 + random() % 4;
    while (conversation.turns.size() < turns) {
      for (uint64_t i = 0, added = 1 + random() % 20; i < added; ++i) {
        kind.prompt_ids.push_back(static_cast<int32_t>(random() % space_.vocab));
      }
      const auto length = static_cast<int64_t>(kind.prompt_ids.size()) + kind.stop.max_new_tokens;
      if (length > kLongestConversation) break;
      conversation.turns.push_back({kind, RunAlone(kind)});
      for (const TokenOutput& output : conversation.turns.back().alone) {
        kind.prompt_ids.push_back(output.id);
      }
    }
    return conversation;
  }

 private:
  std::vector<TokenOutput> RunAlone(GenerateRequest request) {
    request.id = RequestId("alone");
    // Under a salt of its own it finds nothing in the prefix cache.
    request.tenant_salt = Numbered("alone", ++runs_);
    const absl::Status prepared = PrepareRequest(core_.limits(), &request);
    EXPECT_TRUE(prepared.ok()) << prepared;
    const auto sink = std::make_shared<RecordingSink>();
    core_.Add(std::move(request), sink, clock_.Now());
    while (core_.Step()) {
    }
    cache_manager::EventLog& events = core_.state().events;
    while (events.waiting() > 0) events.TakeBatch();  // nobody listens
    EXPECT_TRUE(sink->finished.has_value() && sink->finished->status.ok());
    EXPECT_EQ(sink->finished->cached_tokens, 0);
    return std::move(sink->outputs);
  }

  SimulatedClock clock_;
  EngineCore core_;
  RequestSpace space_{.formats = {}, .sessions = 40};
  std::vector<std::vector<int32_t>> stems_;
  std::vector<uint64_t> drawn_;
  int runs_ = 0;
};

bool SameToken(const TokenOutput& a, const TokenOutput& b) {
  const auto same_bits = [](float x, float y) {
    return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
  };
  return a.index == b.index && a.id == b.id && a.logprob.has_value() == b.logprob.has_value() &&
         same_bits(a.logprob.value_or(0), b.logprob.value_or(0)) &&
         std::equal(a.top_logprobs.begin(), a.top_logprobs.end(), b.top_logprobs.begin(),
                    b.top_logprobs.end(), [&](const TokenLogprob& x, const TokenLogprob& y) {
                      return x.id == y.id && same_bits(x.logprob, y.logprob);
                    });
}

// Numbers of clients whose request ended. Thread-safe.
class EndedClients {
 public:
  void Add(size_t client) {
    MutexLock lock(mutex_);
    ended_.push_back(client);
    changed_.NotifyAll();
  }
  // Those since the last call; none if none ends until `deadline`.
  std::vector<size_t> Take(MonotonicTime deadline) {
    MutexLock lock(mutex_);
    while (ended_.empty()) {
      if (!changed_.WaitUntil(mutex_, deadline)) break;
    }
    return std::exchange(ended_, {});
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::vector<size_t> ended_ ABSL_GUARDED_BY(mutex_);
};

// Cancels its request when it has so many tokens.
class SoakSink final : public RecordingSink {
 public:
  void OnTokens(std::span<const TokenOutput> tokens) override {
    RecordingSink::OnTokens(tokens);
    if (cancel && ids.size() >= cancel_after) cancel();
  }

  size_t cancel_after = 0;
  std::function<void()> cancel;
};

// Plays the turns of a conversation one after the other.
struct Client {
  std::shared_ptr<const Conversation> conversation;
  size_t turn = 0;
  uint64_t kind = 0;        // seed of what its turns have in common
  GenerateRequest request;  // of the turn
  std::shared_ptr<SoakSink> sink;
};

class Soak {
 public:
  Soak() : drawn_(RunDimensions().size()), conversations_(kConversations), clients_(kClients) {
    auto backend = OpenBackend(kBlocksPerPool);
    auto disk = OpenDiskStore({.directory = folder_.path(), .bytes = kDiskBytes, .clock = &clock_},
                              *backend);
    EXPECT_TRUE(disk.ok()) << disk.status();
    EngineOptions options{.max_queue = 12,
                          .max_running_sequences = 16,
                          .max_step_tokens = 40,
                          .max_sessions = 24,
                          .disk = *std::move(disk),
                          .speculative_tokens = kMaxSpeculativeTokens,
                          .on_step = [this] { AfterStep(); }};
    engine_ = std::make_unique<Engine>(options, std::move(backend), &clock_);
    engine_->Start();
    engine_->RunBetweenSteps([this](EngineState& state) { mirror_.Start(state); });
  }

  void Run(std::chrono::seconds length) {
    const MonotonicTime start = clock_.Now();
    MonotonicTime next_sample = start;
    MemoryTrace memory(static_cast<size_t>(length / kSampleEvery) + 1);
    for (size_t c = 0; c < kClients; ++c) Next(c);
    while (clock_.Now() - start < length && !::testing::Test::HasFailure()) {
      for (const size_t c : ended_.Take(next_sample)) {
        CheckAnswer(clients_[c]);
        Next(c);
      }
      for (const size_t c : std::exchange(refused_, {})) Submit(c);
      if (clock_.Now() < next_sample) continue;
      memory.Add(ResidentBytes());
      next_sample += kSampleEvery;
    }
    while (live_ > 0) {
      for (const size_t c : ended_.Take(clock_.Now() + kSampleEvery)) CheckAnswer(clients_[c]);
    }
    CheckRest();
    CheckEverythingHappened();
    CheckMemory(memory);
  }

 private:
  // The longest conversation fits alone, and little more.
  static constexpr int32_t kBlocksPerPool = kLongestConversation / 16 + 3;
  // Room for some conversations and not for all.
  static constexpr int64_t kDiskBytes = 4 << 20;

  uint64_t Below(uint64_t n) { return random_() % n; }

  // On the engine's thread.
  void AfterStep() {
    engine_->RunBetweenSteps([this](EngineState& state) {
      mirror_.Drain(state.events);
      if (++steps_ % 32 == 0) CheckInvariants(state);
    });
  }

  static void CheckInvariants(const EngineState& state) {
    for (size_t i = 0; i < state.pools.size(); ++i) {
      const absl::Status status = state.pools[i]->CheckInvariants(state.tiers[i]->placement());
      EXPECT_TRUE(status.ok()) << status;
    }
    const absl::Status status = state.sessions.CheckInvariants();
    EXPECT_TRUE(status.ok()) << status;
  }

  // Begins the client's next turn, or another conversation.
  void Next(size_t c) {
    Client& client = clients_[c];
    ++client.turn;
    if (client.conversation == nullptr || client.turn >= client.conversation->turns.size()) {
      Place& place = conversations_[Below(kConversations)];
      if (place.plays_left-- == 0) {
        place = {std::make_shared<const Conversation>(lone_.Draw(random_)), kPlays};
      }
      client.conversation = place.conversation;
      client.turn = 0;
      client.kind = random_();
    }
    client.request = client.conversation->turns[client.turn].request;
    client.request.id = RequestId(Numbered("r", ++requests_));
    std::mt19937_64 same_in_all_turns(client.kind);
    RequestSpace space = lone_.space();
    space.disk = true;
    DrawDimensions(RunDimensions(), space, same_in_all_turns, &client.request, drawn_);
    if (Below(2) == 0) ForkAnother(client);
    Submit(c);
  }

  // Makes the request one more sample of a request that another client has under way, if there is
  // one. It has the same index, so the answer is the same.
  void ForkAnother(Client& client) {
    const auto other = std::find_if(clients_.begin(), clients_.end(), [&](const Client& o) {
      return &o != &client && o.conversation == client.conversation && o.turn == client.turn;
    });
    if (other == clients_.end()) return;
    client.request.fork_of = other->request.id;
    client.request.tenant_salt = other->request.tenant_salt;
    client.request.cache = other->request.cache;
  }

  void Submit(size_t c) {
    Client& client = clients_[c];
    GenerateRequest& request = client.request;
    client.sink = std::make_shared<SoakSink>();
    client.sink->on_finished = [this, c] { ended_.Add(c); };
    const bool cancels = Below(8) == 0;
    if (cancels) {
      client.sink->cancel_after = Below(static_cast<uint64_t>(request.stop.max_new_tokens));
      client.sink->cancel = [this, id = request.id, sink = client.sink.get()] {
        engine_->Cancel(id, sink);
      };
    } else if (Below(8) == 0) {
      request.deadline = clock_.Now() + std::chrono::milliseconds(Below(40));
    }
    absl::Status status = engine_->Submit(request, client.sink);
    if (absl::IsOutOfRange(status)) {
      // What can never be promised is taken without a promise.
      EXPECT_EQ(request.cache.allocation, Allocation::kStatic) << status;
      request.cache.allocation = Allocation::kPaged;
      status = engine_->Submit(request, client.sink);
    }
    if (absl::IsResourceExhausted(status)) {
      ++refusals_;
      refused_.push_back(c);
      return;
    }
    ASSERT_TRUE(status.ok()) << status;
    ++live_;
    if (cancels && client.sink->cancel_after == 0) client.sink->cancel();
  }

  void CheckAnswer(const Client& client) {
    --live_;
    const FinishInfo& info = *client.sink->finished;
    const std::vector<TokenOutput>& given = client.sink->outputs;
    const std::vector<TokenOutput>& alone = client.conversation->turns[client.turn].alone;
    const bool cut =
        info.reason == FinishReason::kCancelled || info.reason == FinishReason::kDeadline;
    EXPECT_NE(info.reason, FinishReason::kError) << info.status;
    EXPECT_TRUE(cut ? given.size() <= alone.size() : given.size() == alone.size());
    for (size_t i = 0; i < std::min(given.size(), alone.size()); ++i) {
      EXPECT_TRUE(SameToken(given[i], alone[i]))
          << client.request.id.value() << ", turn " << client.turn << ": token " << i << " is "
          << given[i].id << ", alone " << alone[i].id;
    }
    if (client.request.cache.allocation == Allocation::kStatic) {
      EXPECT_EQ(info.preemptions, 0);
    }
    tokens_ += given.size();
  }

  void CheckRest() {
    EXPECT_TRUE(engine_->idle());
    EXPECT_TRUE(engine_->RunBetweenSteps([this](EngineState& state) {
      CheckInvariants(state);
      for (const auto& pool : state.pools) {
        EXPECT_EQ(pool->Counts().active, 0);
        EXPECT_EQ(pool->Counts().reserved, 0);
      }
      EXPECT_EQ(state.load.running_sequences + state.load.waiting_sequences, 0u);
      mirror_.Drain(state.events);
      mirror_.ExpectEqual(state);
      mirror_.ExpectAllIdleWithoutUnnamedBlocks();
    }));
  }

  // The load is worth nothing without these. Under a sanitizer a twentieth of it runs, too little
  // for all of them.
  void CheckEverythingHappened() {
    const EngineStats stats = engine_->stats();
    std::cout << requests_ << " requests, " << tokens_ << " tokens, " << stats.preemptions
              << " preemptions, " << stats.prefix_tokens_hit << " prompt tokens found, "
              << stats.forks << " forks, " << stats.speculation.accepted_tokens
              << " accepted drafts, " << stats.offload.restored_blocks << " blocks from disk, "
              << refusals_ << " refusals\n";
    if (kSanitized) return;
    for (const FinishReason reason : {FinishReason::kStop, FinishReason::kLength,
                                      FinishReason::kCancelled, FinishReason::kDeadline}) {
      EXPECT_GT(stats.finished[static_cast<size_t>(reason)], 0u) << FinishReasonName(reason);
    }
    EXPECT_GT(stats.preemptions, 0u);
    EXPECT_GT(stats.prefix_tokens_hit, 0u);
    EXPECT_GT(stats.forks, 0u);
    EXPECT_GT(stats.speculation.accepted_tokens, 0u);
    EXPECT_GT(stats.speculation.draft_tokens, stats.speculation.accepted_tokens);
    EXPECT_GT(stats.offload.restored_blocks, 0u);
    EXPECT_GT(refusals_, 0u);
    for (size_t i = 0; i < drawn_.size(); ++i) EXPECT_GT(drawn_[i], 0u) << RunDimensions()[i].name;
    for (size_t i = 0; i < lone_.drawn().size(); ++i) {
      EXPECT_GT(lone_.drawn()[i], 0u) << AnswerDimensions()[i].name;
    }
  }

  static void CheckMemory(const MemoryTrace& memory) {
    ASSERT_GE(memory.size(), 4u);
    std::cout << "resident bytes, median of quarters:";
    for (size_t quarter = 0; quarter < 4; ++quarter) {
      std::cout << ' ' << memory.MedianOfQuarter(quarter);
    }
    std::cout << '\n';
    // A sanitizer keeps freed memory for a while.
    if (!kSanitized) {
      EXPECT_LE(memory.GrowthBytes(), kMostGrowthBytes);
    }
  }

  struct Place {
    std::shared_ptr<const Conversation> conversation;
    int plays_left = 0;
  };

  const SystemClock clock_;
  TempFolder folder_;
  std::mt19937_64 random_{20};
  LoneEngine lone_;
  std::vector<uint64_t> drawn_;
  std::vector<Place> conversations_;
  std::vector<Client> clients_;
  std::vector<size_t> refused_;
  EndedClients ended_;
  size_t live_ = 0;
  int requests_ = 0;
  uint64_t refusals_ = 0;
  uint64_t tokens_ = 0;
  NaiveMirror mirror_;              // the engine's thread's
  uint64_t steps_ = 0;              // likewise
  std::unique_ptr<Engine> engine_;  // last: ends first
};

TEST(EngineSoakTest, MinutesOfMixedLoadGiveLoneAnswersInFlatMemory) {
  Soak soak;
  soak.Run(SoakLength());
}

TEST(EngineSoakTest, TheMemoryTraceTellsALeakFromAWarmUpAndAStep) {
  MemoryTrace leak(400), warm_up(400), peak(400);
  for (int64_t i = 0; i < 400; ++i) {
    leak.Add(10'000'000 + i * 8192);
    warm_up.Add(i < 90 ? i * 100'000 : 9'000'000);
    peak.Add(i % 100 == 50 ? 90'000'000 : 9'000'000);
  }
  EXPECT_EQ(leak.GrowthBytes(), 200 * 8192);
  EXPECT_GT(leak.GrowthBytes(), kMostGrowthBytes);
  EXPECT_EQ(warm_up.GrowthBytes(), 0);
  EXPECT_EQ(peak.GrowthBytes(), 0);
}

}  // namespace
}  // namespace kvist::worker
