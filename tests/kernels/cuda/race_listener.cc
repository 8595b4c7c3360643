// Fails each test in which a kernel raced on shared memory.
#include "gtest/gtest.h"
#include "race_detector.h"

namespace {

class RaceListener : public testing::EmptyTestEventListener {
  void OnTestEnd(const testing::TestInfo&) override {
    for (const std::string& race : cuda_on_cpu::TakeRaces()) ADD_FAILURE() << race;
  }
};

[[maybe_unused]] const bool listening = [] {
  testing::UnitTest::GetInstance()->listeners().Append(new RaceListener);
  return true;
}();

}  // namespace
