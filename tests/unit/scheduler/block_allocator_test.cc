#include "coordinator/scheduler/block_allocator.h"

#include <algorithm>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(BlockAllocatorTest, GivesEachBlockOnce) {
  BlockAllocator blocks(100);
  std::vector<BlockId> table;
  ASSERT_TRUE(blocks.Allocate(60, &table));
  ASSERT_TRUE(blocks.Allocate(40, &table));
  EXPECT_EQ(std::set<BlockId>(table.begin(), table.end()).size(), 100u);
  EXPECT_EQ(*std::max_element(table.begin(), table.end()), 99u);
  EXPECT_EQ(blocks.num_free(), 0u);
  EXPECT_EQ(blocks.num_used(), 100u);
}

TEST(BlockAllocatorTest, RefusesWhatItDoesNotHaveAndChangesNothing) {
  BlockAllocator blocks(3);
  std::vector<BlockId> table;
  EXPECT_FALSE(blocks.Allocate(4, &table));
  EXPECT_THAT(table, IsEmpty());
  EXPECT_EQ(blocks.num_free(), 3u);
}

TEST(BlockAllocatorTest, RefusesWhenEmpty) {
  BlockAllocator blocks;
  std::vector<BlockId> table;
  EXPECT_FALSE(blocks.Allocate(1, &table));
  EXPECT_TRUE(blocks.Allocate(0, &table));
}

TEST(BlockAllocatorTest, AppendsToTheTable) {
  BlockAllocator blocks(4);
  std::vector<BlockId> table;
  ASSERT_TRUE(blocks.Allocate(2, &table));
  ASSERT_TRUE(blocks.Allocate(1, &table));
  EXPECT_THAT(table, ElementsAre(0, 1, 2));
}

TEST(BlockAllocatorTest, GivesAgainFirstWhatWasFreedLast) {
  BlockAllocator blocks(4);
  std::vector<BlockId> first, second, third;
  ASSERT_TRUE(blocks.Allocate(2, &first));
  ASSERT_TRUE(blocks.Allocate(1, &second));
  blocks.FreeAll(&first);
  EXPECT_THAT(first, IsEmpty());
  EXPECT_EQ(blocks.num_used(), 1u);
  ASSERT_TRUE(blocks.Allocate(3, &third));
  EXPECT_THAT(third, ElementsAre(0, 1, 3));
}

TEST(BlockAllocatorDeathTest, RefusesToFreeABlockTwice) {
  BlockAllocator blocks(4);
  std::vector<BlockId> table;
  ASSERT_TRUE(blocks.Allocate(1, &table));
  std::vector<BlockId> copy = table;
  blocks.FreeAll(&table);
  EXPECT_DEATH(blocks.FreeAll(&copy), "used_");
}

TEST(BlockAllocatorDeathTest, RefusesToFreeABlockItDoesNotHave) {
  BlockAllocator blocks(4);
  std::vector<BlockId> table = {4};
  EXPECT_DEATH(blocks.FreeAll(&table), "used_");
}

}  // namespace
}  // namespace millrace
