#include "worker/stage/microbatch_joiner.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kEpoch = 4;

StageInput Plan(uint64_t id, uint32_t rows = 2, int64_t arrived = 0, uint64_t epoch = kEpoch) {
  StageBatch batch;
  batch.epoch = Epoch(epoch);
  batch.id = MicrobatchId(id);
  batch.segments.resize(1);
  batch.segments[0].sequence = SequenceId(100 + id);
  batch.segments[0].token_ids.assign(rows, 7);
  return {arrived, std::move(batch)};
}

StageInput Activations(uint64_t id, uint32_t rows = 2, int64_t arrived = 0, uint64_t epoch = kEpoch) {
  HopMessage message;
  message.epoch = Epoch(epoch);
  message.microbatch = MicrobatchId(id);
  message.rows = rows;
  message.stamps.resize(1);
  message.stamps[0].started_ns = static_cast<int64_t>(id);
  return {arrived, std::move(message)};
}

MicrobatchJoiner Middle(size_t max_in_flight = 3) {
  return MicrobatchJoiner({Epoch(kEpoch), false, max_in_flight});
}
MicrobatchJoiner First(size_t max_in_flight = 3) {
  return MicrobatchJoiner({Epoch(kEpoch), true, max_in_flight});
}

void ExpectRefused(const absl::Status& status, absl::StatusCode code, const std::string& why) {
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(why));
}

TEST(MicrobatchJoinerTest, JoinsInEitherOrder) {
  for (const bool plan_first : {true, false}) {
    MicrobatchJoiner joiner = Middle();
    ASSERT_TRUE(joiner.Add(plan_first ? Plan(1, 2, 10) : Activations(1, 2, 10)).ok());
    EXPECT_FALSE(joiner.Next().has_value());
    ASSERT_TRUE(joiner.Add(plan_first ? Activations(1, 2, 30) : Plan(1, 2, 30)).ok());
    const std::optional<JoinedMicrobatch> joined = joiner.Next();
    ASSERT_TRUE(joined.has_value());
    EXPECT_EQ(joined->batch.id, MicrobatchId(1));
    EXPECT_EQ(joined->batch.segments[0].sequence, SequenceId(101));
    ASSERT_TRUE(joined->activations.has_value());
    EXPECT_EQ(joined->activations->microbatch, MicrobatchId(1));
    EXPECT_EQ(joined->activations->stamps[0].started_ns, 1);
    EXPECT_EQ(joined->received_ns, 30);
    EXPECT_FALSE(joiner.Next().has_value());
  }
}

TEST(MicrobatchJoinerTest, NeedsNoActivationsOnTheFirstStage) {
  MicrobatchJoiner joiner = First();
  ASSERT_TRUE(joiner.Add(Plan(2)).ok());
  EXPECT_FALSE(joiner.Next().has_value());
  ASSERT_TRUE(joiner.Add(Plan(1)).ok());
  for (const uint64_t id : {1, 2}) {
    const std::optional<JoinedMicrobatch> joined = joiner.Next();
    ASSERT_TRUE(joined.has_value());
    EXPECT_EQ(joined->batch.id, MicrobatchId(id));
    EXPECT_FALSE(joined->activations.has_value());
  }
}

// All orders in which the halves of three microbatches can come.
TEST(MicrobatchJoinerTest, GivesMicrobatchesInOrderWhateverTheArrival) {
  std::vector<int> order(6);
  std::iota(order.begin(), order.end(), 0);
  int orders = 0;
  do {
    ++orders;
    MicrobatchJoiner joiner = Middle(3);
    std::vector<uint64_t> out;
    for (const int half : order) {
      const uint64_t id = half / 2 + 1;
      ASSERT_TRUE(joiner.Add(half % 2 == 0 ? Plan(id) : Activations(id)).ok());
      while (const auto joined = joiner.Next()) out.push_back(joined->batch.id.value());
    }
    ASSERT_EQ(out, (std::vector<uint64_t>{1, 2, 3}));
  } while (std::next_permutation(order.begin(), order.end()));
  EXPECT_EQ(orders, 720);
}

TEST(MicrobatchJoinerTest, KeepsUpALongRunWithinItsWindow) {
  std::mt19937 rng(5);
  constexpr uint64_t kWindow = 5;
  MicrobatchJoiner joiner = Middle(kWindow);
  uint64_t next_plan = 1, next_activations = 1, done = 0;
  while (done < 1000) {
    const bool plan = rng() % 2 == 0;
    uint64_t& next = plan ? next_plan : next_activations;
    if (next > done + kWindow) continue;
    ASSERT_TRUE(joiner.Add(plan ? Plan(next) : Activations(next)).ok());
    ++next;
    while (const auto joined = joiner.Next()) ASSERT_EQ(joined->batch.id, MicrobatchId(++done));
  }
}

TEST(MicrobatchJoinerTest, RefusesHalvesThatComeTwice) {
  MicrobatchJoiner joiner = Middle();
  ASSERT_TRUE(joiner.Add(Plan(1)).ok());
  ExpectRefused(joiner.Add(Plan(1)), absl::StatusCode::kInvalidArgument,
                "the plan of microbatch 1 came twice");
  MicrobatchJoiner other = Middle();
  ASSERT_TRUE(other.Add(Activations(2)).ok());
  ExpectRefused(other.Add(Activations(2)), absl::StatusCode::kInvalidArgument,
                "the activations of microbatch 2 came twice");
}

TEST(MicrobatchJoinerTest, RefusesAMicrobatchThatIsOver) {
  MicrobatchJoiner joiner = First();
  ASSERT_TRUE(joiner.Add(Plan(1)).ok());
  ASSERT_TRUE(joiner.Next().has_value());
  ExpectRefused(joiner.Add(Plan(1)), absl::StatusCode::kInvalidArgument,
                "microbatch 1 came again; 2 is next");
  ExpectRefused(joiner.Add(Plan(0)), absl::StatusCode::kInvalidArgument, "microbatch 0 came again");
}

TEST(MicrobatchJoinerTest, RefusesMoreThanMayBeInFlight) {
  MicrobatchJoiner joiner = Middle(2);
  EXPECT_TRUE(joiner.Add(Plan(2)).ok());
  ExpectRefused(joiner.Add(Plan(3)), absl::StatusCode::kResourceExhausted, "microbatch 3 while 1 is next");
  ExpectRefused(joiner.Add(Activations(UINT64_MAX)), absl::StatusCode::kResourceExhausted,
                "more than 2 in flight");
}

TEST(MicrobatchJoinerTest, RefusesActivationsForTheFirstStage) {
  MicrobatchJoiner joiner = First();
  ExpectRefused(joiner.Add(Activations(1)), absl::StatusCode::kInvalidArgument, "to the first stage");
}

TEST(MicrobatchJoinerTest, RefusesHalvesOfDifferentRows) {
  for (const bool plan_first : {true, false}) {
    MicrobatchJoiner joiner = Middle();
    ASSERT_TRUE(joiner.Add(plan_first ? Plan(1, 3) : Activations(1, 4)).ok());
    ExpectRefused(joiner.Add(plan_first ? Activations(1, 4) : Plan(1, 3)), absl::StatusCode::kInvalidArgument,
                  "plan of 3 rows, activations of 4");
  }
}

TEST(MicrobatchJoinerTest, DropsOtherEpochs) {
  MicrobatchJoiner joiner = Middle();
  for (const uint64_t epoch : {uint64_t{0}, kEpoch - 1, kEpoch + 1}) {
    EXPECT_TRUE(joiner.Add(Plan(1, 2, 0, epoch)).ok());
    EXPECT_TRUE(joiner.Add(Activations(1, 2, 0, epoch)).ok());
    EXPECT_TRUE(joiner.Add(Plan(1000, 2, 0, epoch)).ok());
  }
  EXPECT_FALSE(joiner.Next().has_value());
  ASSERT_TRUE(joiner.Add(Plan(1)).ok());
  ASSERT_TRUE(joiner.Add(Activations(1)).ok());
  EXPECT_TRUE(joiner.Next().has_value());
}

}  // namespace
}  // namespace millrace
