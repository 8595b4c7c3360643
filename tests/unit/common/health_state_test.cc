#include "common/health_state.h"

#include <memory>
#include <vector>

#include "gtest/gtest.h"

namespace millrace {
namespace {

using Answer = HealthState::Answer;

class SetClock final : public Clock {
 public:
  absl::Time Now() const override { return now; }
  absl::Time now = absl::UnixEpoch();
};

TEST(HealthState, EachServiceSaysItsOwnThing) {
  HealthState health;
  EXPECT_EQ(health.Ask("liveness"), Answer::kServing);
  for (const char* service : {"startup", "readiness", ""}) {
    EXPECT_EQ(health.Ask(service), Answer::kNotServing) << service;
  }
  health.SetReady(true);
  EXPECT_EQ(health.Ask("readiness"), Answer::kNotServing) << "before it has started";
  health.SetStarted();
  for (const char* service : {"liveness", "startup", "readiness", ""}) {
    EXPECT_EQ(health.Ask(service), Answer::kServing) << service;
  }
  EXPECT_EQ(health.Ask("Liveness"), Answer::kUnknownService);
  health.SetDraining(true);
  EXPECT_EQ(health.Ask("readiness"), Answer::kNotServing);
  EXPECT_EQ(health.Ask(""), Answer::kNotServing);
  EXPECT_EQ(health.Ask("startup"), Answer::kServing);
  EXPECT_EQ(health.Ask("liveness"), Answer::kServing);
  health.SetDraining(false);
  EXPECT_EQ(health.Ask("readiness"), Answer::kServing) << "what SetReady said still holds";
}

TEST(HealthState, NoticesALoopThatDoesNotTick) {
  SetClock clock;
  HealthState health(absl::Seconds(10), &clock);
  HealthState::Loop steady(&health, "steady");
  auto other = std::make_unique<HealthState::Loop>(&health, "other");
  clock.now += absl::Seconds(10);
  steady.Tick();
  EXPECT_TRUE(health.live());
  clock.now += absl::Milliseconds(1);
  EXPECT_FALSE(health.live());
  EXPECT_EQ(health.StuckLoops(), std::vector<std::string>{"other"});
  other->Tick();
  EXPECT_TRUE(health.live());
  clock.now += absl::Seconds(11);
  steady.Tick();
  EXPECT_FALSE(health.live());
  other.reset();
  EXPECT_TRUE(health.live()) << "a loop that has ended owes nothing";
}

TEST(HealthState, LoopsWithoutAStateMayTick) {
  HealthState::Loop loop(nullptr, "nobody asks");
  loop.Tick();
}

TEST(HealthState, TellsItsWatcherOfChangesOnly) {
  HealthState health;
  std::vector<bool> told;
  health.OnReadyChange([&](bool ready) { told.push_back(ready); });
  health.SetReady(true);
  EXPECT_TRUE(told.empty());
  health.SetStarted();
  health.SetReady(true);
  health.SetDraining(true);
  health.SetReady(false);
  health.SetDraining(false);
  EXPECT_EQ(told, (std::vector<bool>{true, false}));
  health.SetReady(true);
  EXPECT_EQ(told.size(), 3u);
  health.OnReadyChange(nullptr);
  health.SetReady(false);
  EXPECT_EQ(told.size(), 3u);
}

TEST(HealthState, TellsANewWatcherThatItIsReady) {
  HealthState health;
  health.SetStarted();
  health.SetReady(true);
  bool told = false;
  health.OnReadyChange([&](bool ready) { told = ready; });
  EXPECT_TRUE(told);
}

}  // namespace
}  // namespace millrace
