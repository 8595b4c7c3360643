#include "model/merge_queue.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <random>
#include <set>
#include <utility>

namespace millrace {
namespace {

TEST(MergeQueueTest, GivesTheLowestRankThenTheLowestPosition) {
  MergeQueue queue;
  for (uint32_t position : {5u, 2u, 9u, 1u, 7u}) queue.Push({3, 10, 11, 12}, position);
  queue.Push({1, 20, 21, 22}, 8);
  const auto first = queue.Pop();
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->rule.result, 22u);
  EXPECT_EQ(first->position, 8u);
  for (uint32_t position : {1u, 2u, 5u, 7u, 9u}) {
    const auto next = queue.Pop();
    ASSERT_TRUE(next.has_value());
    EXPECT_EQ(next->rule.result, 12u);
    EXPECT_EQ(next->position, position);
  }
  EXPECT_FALSE(queue.Pop().has_value());
}

TEST(MergeQueueTest, AgreesWithASortedSetOnRandomUse) {
  std::mt19937 random(17);
  MergeQueue queue;
  std::multiset<std::pair<uint32_t, uint32_t>> model;
  for (int step = 0; step < 200000; ++step) {
    if (random() % 100 < 50) {
      const uint32_t rank = random() % 6, position = random() % 1000;
      queue.Push({rank, rank, rank, rank}, position);
      model.emplace(rank, position);
      continue;
    }
    const auto popped = queue.Pop();
    ASSERT_EQ(popped.has_value(), !model.empty());
    if (model.empty()) continue;
    ASSERT_EQ(std::make_pair(popped->rule.rank, popped->position), *model.begin());
    model.erase(model.begin());
  }
}

}  // namespace
}  // namespace millrace
