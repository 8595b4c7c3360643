#include "coordinator/cluster/drain_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr WorkerId kA(1), kB(2);

class DrainStateTest : public ::testing::Test {
 protected:
  static absl::Time At(double seconds) { return absl::UnixEpoch() + absl::Seconds(seconds); }

  // The actions since the last call, as text.
  std::vector<std::string> Take() {
    std::vector<std::string> texts;
    for (const DrainAction& action : state_.TakeActions()) {
      if (const auto* hold = std::get_if<HoldRequests>(&action)) {
        texts.push_back("hold " + std::to_string(hold->number));
      } else if (const auto* answer = std::get_if<AnswerDrain>(&action)) {
        texts.push_back("answer " + std::to_string(answer->call) + (answer->finished ? " yes" : " no"));
      } else {
        texts.push_back("release");
      }
    }
    return texts;
  }

  void DrainA(uint64_t call, double now) { state_.OnDrainWorker(call, kA, absl::Seconds(60), At(now)); }

  DrainState state_{{absl::Seconds(30), absl::Seconds(100)}};
};

TEST_F(DrainStateTest, AWorkerLeavesAndAnotherTakesItsPlace) {
  DrainA(7, 0);
  EXPECT_THAT(Take(), ElementsAre("hold 1"));
  EXPECT_TRUE(state_.holding());
  EXPECT_THAT(state_.Detail(), HasSubstr("worker 1 is to leave"));
  state_.OnQuiet(1, At(5));
  EXPECT_THAT(Take(), ElementsAre("answer 7 yes"));
  EXPECT_THAT(state_.Detail(), HasSubstr("worker 1 may go"));
  EXPECT_EQ(state_.NextTick(), At(35));
  state_.OnGone(kA, At(6));
  EXPECT_THAT(state_.Detail(), HasSubstr("takes the place"));
  EXPECT_EQ(state_.NextTick(), At(106));
  state_.Tick(At(50));
  EXPECT_THAT(Take(), IsEmpty());
  state_.OnRingUp();
  EXPECT_THAT(Take(), ElementsAre("release"));
  EXPECT_EQ(state_.Detail(), "");
  EXPECT_EQ(state_.NextTick(), absl::InfiniteFuture());
}

TEST_F(DrainStateTest, TheWaitEndsBeforeTheRequestsDo) {
  DrainA(7, 0);
  Take();
  EXPECT_EQ(state_.NextTick(), At(60));
  state_.Tick(At(60));
  EXPECT_THAT(Take(), ElementsAre("answer 7 no"));
  state_.OnGone(kA, At(61));
  state_.OnRingUp();
  EXPECT_THAT(Take(), ElementsAre("release"));
}

TEST_F(DrainStateTest, AWorkerThatDoesNotGoEndsTheHold) {
  DrainA(7, 0);
  state_.OnQuiet(1, At(1));
  Take();
  state_.Tick(At(30.9));
  EXPECT_THAT(Take(), IsEmpty());
  state_.Tick(At(31));
  EXPECT_THAT(Take(), ElementsAre("release"));
  state_.OnGone(kA, At(32));  // later, and nobody waits for it any more
  EXPECT_FALSE(state_.holding());
  // The next time is a hold of its own.
  DrainA(8, 40);
  EXPECT_THAT(Take(), ElementsAre("hold 2"));
  state_.OnQuiet(1, At(41));
  EXPECT_THAT(Take(), IsEmpty());
  state_.OnQuiet(2, At(42));
  EXPECT_THAT(Take(), ElementsAre("answer 8 yes"));
}

TEST_F(DrainStateTest, NoReplacementInTimeEndsTheHold) {
  DrainA(7, 0);
  state_.OnQuiet(1, At(1));
  state_.OnGone(kA, At(2));
  Take();
  state_.Tick(At(101.9));
  EXPECT_THAT(Take(), IsEmpty());
  state_.Tick(At(102));
  EXPECT_THAT(Take(), ElementsAre("release"));
}

TEST_F(DrainStateTest, AWorkerThatIsKilledBeforeItMayGoIsAnswered) {
  DrainA(7, 0);
  state_.OnGone(kA, At(1));
  EXPECT_THAT(Take(), ElementsAre("hold 1", "answer 7 no"));
}

TEST_F(DrainStateTest, SeveralLeaveAndTheHoldLastsUntilTheLastHasBeenReplaced) {
  DrainA(1, 0);
  state_.OnDrainWorker(2, kB, absl::Seconds(60), At(0));
  EXPECT_THAT(Take(), ElementsAre("hold 1"));
  state_.OnQuiet(1, At(1));
  EXPECT_THAT(Take(), ElementsAre("answer 1 yes", "answer 2 yes"));
  state_.OnGone(kA, At(2));
  state_.OnRingUp();
  EXPECT_THAT(Take(), IsEmpty());
  state_.OnGone(kB, At(3));
  EXPECT_THAT(Take(), IsEmpty());
  state_.OnRingUp();
  EXPECT_THAT(Take(), ElementsAre("release"));
}

TEST_F(DrainStateTest, AskingAgainWaitsForTheSame) {
  DrainA(1, 0);
  DrainA(2, 50);
  EXPECT_THAT(Take(), ElementsAre("hold 1"));
  state_.Tick(At(60));
  EXPECT_THAT(Take(), ElementsAre("answer 1 no"));
  state_.OnQuiet(1, At(70));
  EXPECT_THAT(Take(), ElementsAre("answer 2 yes"));
  DrainA(3, 90);
  EXPECT_THAT(Take(), ElementsAre("answer 3 yes"));
  state_.Tick(At(119));
  EXPECT_THAT(Take(), IsEmpty());
  state_.Tick(At(120));
  EXPECT_THAT(Take(), ElementsAre("release"));
}

TEST_F(DrainStateTest, AStageWithoutAWorkerHasNothingToWaitFor) {
  state_.OnDrainWorker(1, WorkerId(), absl::Seconds(60), At(0));
  EXPECT_THAT(Take(), ElementsAre("answer 1 yes"));
  EXPECT_FALSE(state_.holding());
}

TEST_F(DrainStateTest, ALostWorkerThatWasNotToLeaveIsNoConcern) {
  state_.OnGone(kB, At(0));
  state_.OnRingUp();
  EXPECT_THAT(Take(), IsEmpty());
  EXPECT_EQ(state_.NextTick(), absl::InfiniteFuture());
}

TEST_F(DrainStateTest, TheWholeIsDrainedOnceNothingIsLive) {
  state_.OnDrainAll(1, absl::Seconds(10), At(0));
  state_.OnDrainAll(2, absl::Seconds(20), At(0));
  state_.Tick(At(10));
  EXPECT_THAT(Take(), ElementsAre("answer 1 no"));
  state_.OnAllIdle();
  EXPECT_THAT(Take(), ElementsAre("answer 2 yes"));
  state_.OnDrainAll(3, absl::Seconds(20), At(30));
  EXPECT_THAT(Take(), ElementsAre("answer 3 yes"));
  EXPECT_FALSE(state_.holding());
}

}  // namespace
}  // namespace millrace
