#include "coordinator/cluster/loading_progress.h"

#include "gtest/gtest.h"

namespace millrace {
namespace {

TEST(LoadingProgressTest, SaysOfHowManyWorkersItSpeaks) {
  LoadingProgress progress;
  progress.Add(0, 0);
  EXPECT_EQ(progress.Text(), "loading");
  progress.Add(100, 100);
  EXPECT_EQ(progress.Text(), "loading, 100 % of the weights read by 1 of 2 workers");
}

TEST(LoadingProgressTest, WeighsByBytes) {
  LoadingProgress progress;
  progress.Add(100, 100);
  progress.Add(0, 300);
  EXPECT_EQ(progress.Text(), "loading, 25 % of the weights read");
}

}  // namespace
}  // namespace millrace
