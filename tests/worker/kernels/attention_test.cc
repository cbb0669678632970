#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/kernels/attention_case.h"
#include "tests/worker/kernels/tested_kernels.h"
#include "worker/kernels/kernel_table.h"

namespace kvist::worker {
namespace {

class AttentionTest : public testing::TestWithParam<const KernelTable*> {
 protected:
  void SetUp() override { SetFloatEnvironment(); }
};

std::string TableName(const testing::TestParamInfo<const KernelTable*>& info) {
  return std::string(info.param->name);
}

INSTANTIATE_TEST_SUITE_P(Tables, AttentionTest, testing::ValuesIn(TestedKernels()), TableName);

std::vector<AttentionShape> Shapes() {
  return {
      {KvFormat::kF16, 64, 3, 40, 16, 0},
      {KvFormat::kF32, 64, 1, 300, 32, 0},
      {KvFormat::kBF16, 128, 2, 530, 64, 0},
      {KvFormat::kF16, 256, 4, 300, 16, 0},
      {KvFormat::kF32, 16, 4, 33, 128, 0},
      {KvFormat::kF16, 32, 3, 270, 16, 20},
      {KvFormat::kBF16, 64, 1, 600, 32, 16},
      {KvFormat::kF16, 64, 3, 1050, 16, 512},
      {KvFormat::kF32, 40, 2, 100, 16, 1},
      {KvFormat::kF16, 8, 8, 50, 16, 17},
      {KvFormat::kF16, 64, 3, 600, 16, 257},
      // Sinks in the window's first page, at page ends, over several pages and splits.
      {KvFormat::kF16, 64, 3, 90, 16, 16, 4},
      {KvFormat::kF32, 16, 4, 200, 32, 40, 16},
      {KvFormat::kBF16, 64, 2, 700, 16, 100, 17},
      {KvFormat::kF16, 32, 3, 1100, 64, 300, 299},
      {KvFormat::kF16, 8, 1, 300, 16, 257, 1},
      {KvFormat::kF32, 40, 2, 540, 16, 33, 32},
      {KvFormat::kQ8, 64, 3, 300, 16, 0},
      {KvFormat::kQ8, 8, 5, 50, 32, 0},
      {KvFormat::kQ8, 24, 1, 70, 16, 20},
      {KvFormat::kQ8, 128, 2, 530, 64, 0},
      {KvFormat::kQ8, 256, 4, 290, 16, 257},
      {KvFormat::kQ8, 80, 1, 40, 128, 1},
      {KvFormat::kQ8, 72, 2, 50, 16, 0},
      {KvFormat::kQ4, 64, 3, 300, 16, 0},
      {KvFormat::kQ4, 32, 5, 50, 32, 0},
      {KvFormat::kQ4, 96, 1, 70, 16, 20},
      {KvFormat::kQ4, 128, 2, 530, 64, 0},
      {KvFormat::kQ4, 256, 4, 290, 16, 257},
      {KvFormat::kQ8, 64, 2, 700, 16, 100, 17},
      {KvFormat::kQ4, 64, 2, 700, 16, 100, 17},
  };
}

// Weights are positive and sum to 1, |v| < 6: rounding of scores moves weights by a few ulp of
// |score| <= 64.
TEST_P(AttentionTest, AgreesWithSoftmaxInDoubleAndNeverReadsUnwrittenSlots) {
  std::mt19937 rng(3);
  for (const AttentionShape& shape : Shapes()) {
    PagedSequence sequence(*GetParam(), shape, rng);
    const int64_t stride = shape.heads * shape.head_dim;
    const std::vector<float> q = RandomFloats(shape.length * stride, rng);
    const std::vector<float> out =
        RunAttention(*GetParam(), shape, sequence, q, 0, shape.length, 7);
    const PagedSequence::StoredRows stored = sequence.Stored();
    for (int64_t position = 0; position < shape.length; position += position < 40 ? 1 : 13) {
      for (int64_t head = 0; head < shape.heads; ++head) {
        const int64_t at = position * stride + head * shape.head_dim;
        const std::vector<double> expected = NaiveAttention(shape, stored, q.data() + at, position);
        for (int64_t d = 0; d < shape.head_dim; ++d) {
          ASSERT_NEAR(out[static_cast<size_t>(at + d)], expected[static_cast<size_t>(d)], 2e-5)
              << "head_dim " << shape.head_dim << " position " << position << " head " << head
              << " d " << d;
        }
      }
    }
  }
}

TEST_P(AttentionTest, GivesTheBitsOfTheFirstTableForAnyNumberOfQueriesPerTask) {
  const KernelTable& reference = *AvailableKernels().front();
  std::mt19937 rng(4);
  for (const AttentionShape& shape : Shapes()) {
    PagedSequence sequence(reference, shape, rng);
    const std::vector<float> q = RandomFloats(shape.length * shape.heads * shape.head_dim, rng);
    const std::vector<float> expected =
        RunAttention(reference, shape, sequence, q, 0, shape.length, 1);
    const bool is_long = shape.length > 100;
    const bool few = IsEmulated(*GetParam());
    const int64_t first = few && is_long ? 27 : 1;
    const int64_t step = is_long ? (few ? 27 : 13) : (few ? 6 : 1);
    for (int64_t per_task = first; per_task <= 40; per_task += step) {
      EXPECT_TRUE(SameBits(RunAttention(*GetParam(), shape, sequence, q, 0, shape.length, per_task),
                           expected))
          << "head_dim " << shape.head_dim << " length " << shape.length << " per task "
          << per_task;
    }
  }
}

// Each split by itself, in descending order, and then merged.
TEST_P(AttentionTest, SplitsOfOneQueryMergeToTheBitsOfTheWhole) {
  std::mt19937 rng(9);
  for (const AttentionShape& shape : Shapes()) {
    PagedSequence sequence(*GetParam(), shape, rng);
    const std::vector<float> q = RandomFloats(shape.length * shape.heads * shape.head_dim, rng);
    const int64_t state = shape.head_dim + 2;
    for (int64_t position = 0; position < shape.length; position += 31) {
      const std::vector<float> whole =
          RunAttention(*GetParam(), shape, sequence, q, position, 1, 1);
      const int64_t splits = position / kSplitTokens + 1;
      AlignedArray<float> scratch(AttentionScratchFloats(shape.head_dim, shape.heads, 1));
      std::vector<float> partials(static_cast<size_t>(splits * shape.heads * state));
      std::vector<float> merged(whole.size());
      AttentionTask task = TaskOf(shape, sequence, q, position, 1);
      task.scratch = scratch.data();
      for (int64_t split = splits - 1; split >= 0; --split) {
        task.split = split;
        task.partials = partials.data() + split * shape.heads * state;
        GetParam()->attention(task);
      }
      for (int64_t head = 0; head < shape.heads; ++head) {
        GetParam()->merge_attention({.head_dim = shape.head_dim,
                                     .splits = splits,
                                     .partials = partials.data() + head * state,
                                     .stride = shape.heads * state,
                                     .out = merged.data() + head * shape.head_dim});
      }
      ASSERT_TRUE(SameBits(merged, whole))
          << "head_dim " << shape.head_dim << " position " << position;
    }
  }
}

constexpr KvFormat kAllFormats[] = {KvFormat::kF32, KvFormat::kF16, KvFormat::kBF16, KvFormat::kQ8,
                                    KvFormat::kQ4};

void ExpectTheSameForAnyBlockSize(const KernelTable& table, KvFormat format) {
  std::vector<float> first;
  for (int64_t block_tokens : {16, 32, 64, 128}) {
    std::mt19937 rng(5);
    AttentionShape shape = {format, 64, 3, 290, block_tokens, 0};
    std::mt19937 order(static_cast<uint32_t>(block_tokens));
    PagedSequence sequence(table, shape, order);
    sequence.keys = RandomFloats(shape.length * shape.head_dim, rng);
    sequence.values = RandomFloats(shape.length * shape.head_dim, rng);
    for (int64_t position = 0; position < shape.length; ++position) sequence.Write(table, position);
    const std::vector<float> q = RandomFloats(shape.length * shape.heads * shape.head_dim, rng);
    const std::vector<float> out = RunAttention(table, shape, sequence, q, 0, shape.length, 9);
    if (first.empty()) first = out;
    EXPECT_TRUE(SameBits(out, first)) << block_tokens;
  }
}

TEST_P(AttentionTest, DoesNotDependOnTheBlockSize) {
  for (const KvFormat format : kAllFormats) ExpectTheSameForAnyBlockSize(*GetParam(), format);
}

// What later positions hold must not matter: they may be a neighbour's leftovers in a page that is
// being filled, or, where nothing was written, NaN in values and scales.
void ExpectLaterSlotsNotToMatter(const KernelTable& table, KvFormat format) {
  std::mt19937 rng(6);
  const AttentionShape longer = {format, 64, 3, 40, 16, 0};
  AttentionShape shorter = longer;
  shorter.length = 21;
  PagedSequence all(table, longer, rng);
  PagedSequence part(table, shorter, rng);
  part.keys.assign(all.keys.begin(), all.keys.begin() + 21 * 64);
  part.values.assign(all.values.begin(), all.values.begin() + 21 * 64);
  for (int64_t position = 0; position < 21; ++position) part.Write(table, position);
  const std::vector<float> q = RandomFloats(longer.length * 3 * 64, rng);
  EXPECT_TRUE(SameBits(RunAttention(table, longer, all, q, 0, 21, 21),
                       RunAttention(table, shorter, part, q, 0, 21, 21)));
}

TEST_P(AttentionTest, DoesNotDependOnWhatLaterSlotsHold) {
  for (const KvFormat format : kAllFormats) ExpectLaterSlotsNotToMatter(*GetParam(), format);
}

// A NaN shows in every query that sees it and in no other.
TEST_P(AttentionTest, ATokenThatItsFormatCannotHoldIsNanForThoseWhoSeeIt) {
  for (const KvFormat format : {KvFormat::kQ8, KvFormat::kQ4}) {
    for (const bool in_keys : {true, false}) {
      std::mt19937 rng(9);
      const AttentionShape shape = {format, 32, 2, 60, 16, 8};
      PagedSequence sequence(*GetParam(), shape, rng);
      const std::vector<float> q = RandomFloats(shape.length * 2 * 32, rng);
      const std::vector<float> before =
          RunAttention(*GetParam(), shape, sequence, q, 0, shape.length, 9);
      (in_keys ? sequence.keys : sequence.values)[20 * 32 + 3] = -INFINITY;
      sequence.Write(*GetParam(), 20);
      const std::vector<float> after =
          RunAttention(*GetParam(), shape, sequence, q, 0, shape.length, 9);
      for (size_t i = 0; i < after.size(); ++i) {
        const size_t position = i / (2 * 32);
        if (position >= 20 && position < 28) {
          ASSERT_TRUE(std::isnan(after[i])) << position;
        } else {
          ASSERT_EQ(after[i], before[i]) << position;
        }
      }
    }
  }
}

TEST_P(AttentionTest, OneVisibleTokenReturnsItsValue) {
  std::mt19937 rng(7);
  const AttentionShape shape = {KvFormat::kF32, 64, 2, 600, 16, 1};
  PagedSequence sequence(*GetParam(), shape, rng);
  const std::vector<float> q = RandomFloats(shape.length * 2 * 64, rng);
  const std::vector<float> out = RunAttention(*GetParam(), shape, sequence, q, 0, shape.length, 5);
  for (int64_t position = 0; position < shape.length; ++position) {
    for (int64_t head = 0; head < 2; ++head) {
      const auto from = sequence.values.begin() + position * 64;
      EXPECT_TRUE(std::equal(from, from + 64, out.begin() + (position * 2 + head) * 64))
          << position;
    }
  }
}

TEST_P(AttentionTest, StoresTheSameBytesAsTheFirstTable) {
  for (const AttentionShape& shape : Shapes()) {
    std::mt19937 rng(8);
    PagedSequence expected(*AvailableKernels().front(), shape, rng);
    std::mt19937 again(8);
    PagedSequence sequence(*GetParam(), shape, again);
    EXPECT_TRUE(
        std::equal(sequence.arena().begin(), sequence.arena().end(), expected.arena().begin()));
  }
}

}  // namespace
}  // namespace kvist::worker
