#include "coordinator/scheduler/block_pool.h"

#include <algorithm>
#include <list>
#include <map>
#include <random>
#include <set>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

BlockHash Named(uint64_t name) {
  return {name, 0};
}

TEST(BlockPoolTest, GivesEachBlockOnce) {
  BlockPool blocks(100);
  std::vector<BlockId> table;
  ASSERT_TRUE(blocks.Allocate(60, &table));
  ASSERT_TRUE(blocks.Allocate(40, &table));
  EXPECT_EQ(std::set<BlockId>(table.begin(), table.end()).size(), 100u);
  EXPECT_EQ(*std::max_element(table.begin(), table.end()), 99u);
  EXPECT_EQ(blocks.num_free(), 0u);
  EXPECT_EQ(blocks.num_used(), 100u);
}

TEST(BlockPoolTest, RefusesWhatItDoesNotHaveAndChangesNothing) {
  BlockPool blocks(3);
  std::vector<BlockId> table;
  EXPECT_FALSE(blocks.Allocate(4, &table));
  EXPECT_THAT(table, IsEmpty());
  EXPECT_EQ(blocks.num_free(), 3u);
}

TEST(BlockPoolTest, RefusesWhenEmpty) {
  BlockPool blocks;
  std::vector<BlockId> table;
  EXPECT_FALSE(blocks.Allocate(1, &table));
  EXPECT_TRUE(blocks.Allocate(0, &table));
}

TEST(BlockPoolTest, GivesAgainFirstWhatWasFreedLast) {
  BlockPool blocks(4);
  std::vector<BlockId> first, second, third;
  ASSERT_TRUE(blocks.Allocate(2, &first));
  ASSERT_TRUE(blocks.Allocate(1, &second));
  EXPECT_THAT(first, ElementsAre(0, 1));
  blocks.Release(&first);
  EXPECT_THAT(first, IsEmpty());
  EXPECT_EQ(blocks.num_used(), 1u);
  ASSERT_TRUE(blocks.Allocate(3, &third));
  EXPECT_THAT(third, ElementsAre(0, 1, 3));
}

// Tables of full blocks with names from `name` on.
std::vector<BlockId> Fill(BlockPool& blocks, uint64_t name, uint32_t count) {
  std::vector<BlockId> table;
  EXPECT_TRUE(blocks.Allocate(count, &table));
  for (BlockId& block : table) blocks.Name(Named(name++), &block);
  return table;
}

std::vector<BlockHash> Names(uint64_t name, uint32_t count) {
  std::vector<BlockHash> names;
  for (uint32_t i = 0; i < count; ++i) names.push_back(Named(name + i));
  return names;
}

TEST(BlockPoolTest, SharesWhatIsHeldAndKeepsItUntilTheLastLetsGo) {
  BlockPool blocks(4);
  std::vector<BlockId> first = Fill(blocks, 10, 2);
  std::vector<BlockId> second;
  uint32_t free = 9;
  EXPECT_EQ(blocks.Find(Names(10, 3), &free), 2u);
  EXPECT_EQ(free, 0u);
  blocks.Share(Names(10, 2), &second);
  EXPECT_EQ(second, first);
  EXPECT_EQ(blocks.num_used(), 2u);
  EXPECT_EQ(blocks.holders(first[0]), 2u);
  blocks.Release(&first);
  EXPECT_EQ(blocks.num_used(), 2u);
  EXPECT_EQ(blocks.num_cached(), 0u);
  blocks.Release(&second);
  EXPECT_EQ(blocks.num_used(), 0u);
  EXPECT_EQ(blocks.num_cached(), 2u);
  EXPECT_EQ(blocks.Find(Names(10, 3), &free), 2u);
  EXPECT_EQ(free, 2u);
}

TEST(BlockPoolTest, FindsOnlyFromTheFirstOn) {
  BlockPool blocks(4);
  Fill(blocks, 10, 2);
  uint32_t free = 0;
  EXPECT_EQ(blocks.Find(Names(9, 3), &free), 0u);
  EXPECT_EQ(blocks.Find(Names(11, 3), &free), 1u);
  EXPECT_EQ(blocks.Find({}, &free), 0u);
}

TEST(BlockPoolTest, GivesBlankBlocksBeforeCachedOnesAndThenTheOnesUnusedForLongest) {
  BlockPool blocks(6);
  std::vector<BlockId> old = Fill(blocks, 10, 2);
  std::vector<BlockId> young = Fill(blocks, 20, 2);
  blocks.Release(&old);
  blocks.Release(&young);
  std::vector<BlockId> table;
  uint32_t free = 0;
  ASSERT_TRUE(blocks.Allocate(2, &table));
  EXPECT_EQ(blocks.num_cached(), 4u);
  ASSERT_TRUE(blocks.Allocate(1, &table));
  EXPECT_EQ(blocks.Find(Names(10, 2), &free), 1u) << "the later block goes before the one it follows";
  ASSERT_TRUE(blocks.Allocate(1, &table));
  EXPECT_EQ(blocks.Find(Names(10, 2), &free), 0u);
  EXPECT_EQ(blocks.Find(Names(20, 2), &free), 2u);
  ASSERT_TRUE(blocks.Allocate(2, &table));
  EXPECT_EQ(blocks.num_cached(), 0u);
  EXPECT_EQ(blocks.Find(Names(20, 2), &free), 0u);
  EXPECT_THAT(table, ::testing::UnorderedElementsAre(0, 1, 2, 3, 4, 5));
}

TEST(BlockPoolTest, KeepsWhatWasUsedAgain) {
  BlockPool blocks(4);
  std::vector<BlockId> first = Fill(blocks, 10, 2);
  std::vector<BlockId> second = Fill(blocks, 20, 2);
  blocks.Release(&first);
  blocks.Release(&second);
  blocks.Share(Names(10, 2), &first);
  blocks.Release(&first);
  std::vector<BlockId> table;
  uint32_t free = 0;
  ASSERT_TRUE(blocks.Allocate(2, &table));
  EXPECT_EQ(blocks.Find(Names(10, 2), &free), 2u);
  EXPECT_EQ(blocks.Find(Names(20, 2), &free), 0u);
}

TEST(BlockPoolTest, GivesABlockBackWhoseContentIsThereAlready) {
  BlockPool blocks(5);
  std::vector<BlockId> first = Fill(blocks, 10, 2);
  std::vector<BlockId> second = Fill(blocks, 10, 2);
  EXPECT_EQ(second, first);
  EXPECT_EQ(blocks.num_used(), 2u);
  blocks.Release(&first);
  blocks.Release(&second);
  EXPECT_EQ(blocks.num_cached(), 2u);
  std::vector<BlockId> third = Fill(blocks, 10, 1);
  EXPECT_EQ(blocks.num_used(), 1u);
  EXPECT_EQ(blocks.num_cached(), 1u);
}

TEST(BlockPoolTest, ForeseesWhatReleasingWouldFree) {
  BlockPool blocks(10);
  std::vector<BlockId> first = Fill(blocks, 10, 3);
  std::vector<BlockId> second, third;
  blocks.Share(Names(10, 3), &second);
  blocks.Share(Names(10, 2), &third);
  ASSERT_TRUE(blocks.Allocate(1, &second));
  ASSERT_TRUE(blocks.Allocate(2, &third));
  ReleasePreview preview(blocks);
  EXPECT_EQ(preview.Release(third), 2u);
  EXPECT_EQ(preview.Release(second), 1u);
  EXPECT_EQ(preview.Release(first), 3u);
}

TEST(BlockPoolDeathTest, RefusesToFreeABlockTwice) {
  BlockPool blocks(4);
  std::vector<BlockId> table;
  ASSERT_TRUE(blocks.Allocate(1, &table));
  std::vector<BlockId> copy = table;
  blocks.Release(&table);
  EXPECT_DEATH(blocks.Release(&copy), "holders");
}

TEST(BlockPoolDeathTest, RefusesToFreeABlockItDoesNotHave) {
  BlockPool blocks(4);
  std::vector<BlockId> table = {4};
  EXPECT_DEATH(blocks.Release(&table), "block <");
}

TEST(BlockPoolDeathTest, RefusesToNameASharedBlock) {
  BlockPool blocks(4);
  std::vector<BlockId> table = Fill(blocks, 1, 1);
  EXPECT_DEATH(blocks.Name(Named(2), &table[0]), "named");
}

// What the pool must do, by lists and searches.
class NaivePool {
 public:
  explicit NaivePool(uint32_t num_blocks) : num_blocks_(num_blocks) {
    for (BlockId block = num_blocks; block > 0; --block) blank_.push_back(block - 1);
  }
  uint32_t free() const { return static_cast<uint32_t>(blank_.size() + idle_.size()); }
  uint32_t idle() const { return static_cast<uint32_t>(idle_.size()); }
  std::vector<uint32_t> holders() const {
    std::vector<uint32_t> all(num_blocks_, 0);
    for (const auto& [block, count] : holders_) all[block] = count;
    return all;
  }
  bool Allocate(uint32_t count, std::vector<BlockId>* table) {
    if (count > free()) return false;
    while (count-- > 0) {
      BlockId block;
      if (!blank_.empty()) {
        block = blank_.back();
        blank_.pop_back();
      } else {
        block = idle_.front();
        idle_.pop_front();
        names_.erase(std::find_if(names_.begin(), names_.end(), [&](auto& e) { return e.second == block; }));
      }
      ++holders_[block];
      table->push_back(block);
    }
    return true;
  }
  void Release(std::vector<BlockId>* table) {
    std::reverse(table->begin(), table->end());
    for (BlockId block : *table) Drop(block);
    table->clear();
  }
  void Name(uint64_t name, BlockId* block) {
    const auto it = names_.find(name);
    if (it == names_.end()) {
      names_[name] = *block;
      return;
    }
    idle_.remove(it->second);
    ++holders_[it->second];
    Drop(*block);
    *block = it->second;
  }
  uint32_t Find(const std::vector<uint64_t>& names, uint32_t* free) const {
    *free = 0;
    uint32_t found = 0;
    for (; found < names.size() && names_.count(names[found]) > 0; ++found) {
      *free += std::count(idle_.begin(), idle_.end(), names_.at(names[found])) > 0;
    }
    return found;
  }
  void Share(const std::vector<uint64_t>& names, uint32_t count, std::vector<BlockId>* table) {
    for (uint32_t i = 0; i < count; ++i) {
      const BlockId block = names_.at(names[i]);
      idle_.remove(block);
      ++holders_[block];
      table->push_back(block);
    }
  }

 private:
  void Drop(BlockId block) {
    if (--holders_[block] > 0) return;
    const bool named = std::any_of(names_.begin(), names_.end(), [&](auto& e) { return e.second == block; });
    if (named) {
      idle_.push_back(block);
    } else {
      blank_.push_back(block);
    }
  }
  uint32_t num_blocks_;
  std::vector<BlockId> blank_;
  std::list<BlockId> idle_;  // oldest first
  std::map<BlockId, uint32_t> holders_;
  std::map<uint64_t, BlockId> names_;
};

// Sequences that start with what is found, grow, get full blocks and end, over few different prefixes: the
// name of block i of a sequence is what it names by its choices so far.
class PoolRun {
 public:
  explicit PoolRun(uint32_t seed) : random_(seed), pool_(1 + random_() % 40), naive_(pool_.num_blocks()) {}

  void Run() {
    for (int step = 0; step < 400; ++step) {
      const uint32_t what = random_() % 10;
      if (what < 3) {
        Start();
      } else if (what < 8 && !users_.empty()) {
        Grow(users_[random_() % users_.size()]);
      } else if (!users_.empty()) {
        End(random_() % users_.size());
      }
      Compare();
      if (::testing::Test::HasFailure()) return;
    }
  }

 private:
  struct User {
    std::vector<uint64_t> names;  // of a long text
    std::vector<BlockId> ours, theirs;
    uint32_t named = 0;
  };

  void Start() {
    User user;
    for (uint64_t i = 0, name = 0; i < 12; ++i) {
      name = name * 3 + 1 + random_() % (i < 3 ? 2 : 1);
      user.names.push_back(name);
    }
    std::vector<BlockHash> names;
    for (uint64_t name : user.names) names.push_back(Named(name));
    uint32_t free = 0, naive_free = 0;
    const uint32_t found = pool_.Find(names, &free);
    EXPECT_EQ(found, naive_.Find(user.names, &naive_free));
    EXPECT_EQ(free, naive_free);
    const uint32_t taken = found == 0 ? 0 : random_() % (found + 1);
    pool_.Share(absl::MakeSpan(names).first(taken), &user.ours);
    naive_.Share(user.names, taken, &user.theirs);
    user.named = taken;
    users_.push_back(std::move(user));
  }

  void Grow(User& user) {
    const uint32_t held = static_cast<uint32_t>(user.ours.size());
    const uint32_t count = random_() % 4;
    if (held + count > user.names.size()) return;
    EXPECT_EQ(pool_.Allocate(count, &user.ours), naive_.Allocate(count, &user.theirs));
    while (user.named < user.ours.size() && random_() % 3 > 0) {
      pool_.Name(Named(user.names[user.named]), &user.ours[user.named]);
      naive_.Name(user.names[user.named], &user.theirs[user.named]);
      ++user.named;
    }
  }

  void End(size_t index) {
    ReleasePreview preview(pool_);
    const uint32_t expected = preview.Release(users_[index].ours);
    const uint32_t before = pool_.num_free();
    pool_.Release(&users_[index].ours);
    EXPECT_EQ(pool_.num_free() - before, expected);
    naive_.Release(&users_[index].theirs);
    users_.erase(users_.begin() + static_cast<ptrdiff_t>(index));
  }

  void Compare() {
    for (const User& user : users_) EXPECT_EQ(user.ours, user.theirs);
    EXPECT_EQ(pool_.num_free(), naive_.free());
    EXPECT_EQ(pool_.num_cached(), naive_.idle());
    pool_.CheckInvariants(naive_.holders());
  }

  std::mt19937 random_;
  BlockPool pool_;
  NaivePool naive_;
  std::vector<User> users_;
};

TEST(BlockPoolTest, DoesWhatANaiveOneDoes) {
  for (uint32_t seed = 1; seed <= 300 && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    PoolRun(seed).Run();
  }
}

}  // namespace
}  // namespace millrace
