// Whose blocks are taken when there are none: that of the engine's own book-keeping, not of the
// scheduler's test.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/hash_engine_test.h"
#include "tests/support/hash_reference.h"

namespace kvist::worker {
namespace {

class EnginePreemptionTest : public HashEngineTest {
 protected:
  struct Turn {
    GenerateRequest request;
    std::shared_ptr<RecordingSink> sink;
    int64_t preemptions() const { return sink->finished->preemptions; }
  };
  // With prompts of the same salt, requests of one length are the same.
  Turn Start(const std::string& id, int64_t prompt, int32_t salt, int64_t max_new) {
    Turn turn{RequestOf(id, Ids(prompt, salt), max_new), nullptr};
    turn.sink = Add(turn.request);
    return turn;
  }
  void ExpectRight(const Turn& turn) {
    EXPECT_EQ(turn.sink->ids, ByDefinition(backend, turn.request)) << turn.request.id.value();
  }
};

// Which of both has more tokens behind its last full block depends on the lengths.
TEST_F(EnginePreemptionTest, OfALongAndAShortSequenceTheShortOneGoes) {
  backend.num_blocks = 31;
  for (int64_t more = 0; more < 16; ++more) {
    Make();
    const Turn first = Start("first", 40, 1, 60);
    const Turn longer = Start("long", 321 + more, 2, 40);
    const Turn shorter = Start("short", 40, 3, 40);
    RunToEnd();
    EXPECT_GT(shorter.preemptions(), 0) << more;
    EXPECT_EQ(longer.preemptions(), 0) << more;
    EXPECT_EQ(first.preemptions(), 0) << more;
    for (const Turn& turn : {first, longer, shorter}) ExpectRight(turn);
  }
}

// Two of the same prompt fill the same blocks: at the end of one, all that either holds is both's.
TEST_F(EnginePreemptionTest, WhoGivesNothingAwayIsNotPreempted) {
  backend.num_blocks = 14;
  Make();
  const Turn first = Start("first", 40, 1, 30);
  const Turn twin = Start("twin", 40, 2, 30);
  const Turn other_twin = Start("other twin", 40, 2, 30);
  const Turn last = Start("last", 45, 3, 30);
  RunToEnd();
  EXPECT_GT(last.preemptions(), 0);
  for (const Turn& turn : {first, twin, other_twin}) EXPECT_EQ(turn.preemptions(), 0);
  for (const Turn& turn : {first, twin, other_twin, last}) ExpectRight(turn);
}

TEST_F(EnginePreemptionTest, WhoTogetherHoldAllThatIsLeftGoTogether) {
  backend.num_blocks = 23;
  Make();
  std::vector<Turn> before;
  for (int i = 0; i < 4; ++i) before.push_back(Start(Numbered("r", i), 40, i, 30));
  const Turn twin = Start("twin", 40, 4, 30);
  const Turn other_twin = Start("other twin", 40, 4, 30);
  RunToEnd();
  EXPECT_GT(twin.preemptions(), 0);
  EXPECT_GT(other_twin.preemptions(), 0);
  for (const Turn& turn : before) {
    EXPECT_EQ(turn.preemptions(), 0) << turn.request.id.value();
    ExpectRight(turn);
  }
  ExpectRight(twin);
  ExpectRight(other_twin);
}

}  // namespace
}  // namespace kvist::worker
