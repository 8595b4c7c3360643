#include "worker/device/cpu/shard_team.h"

#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace millrace {
namespace {

TEST(ShardBarrierTest, NobodyGoesOnBeforeAllAreThere) {
  constexpr int kRounds = 2000;
  for (uint32_t threads : {1u, 2u, 3u, 5u}) {
    ShardBarrier barrier(threads);
    std::vector<int> rounds(threads, 0);  // not atomic: the barrier alone orders it
    std::atomic<int> wrong{0};
    std::vector<std::thread> all;
    for (uint32_t i = 0; i < threads; ++i) {
      all.emplace_back([&, i] {
        for (int round = 1; round <= kRounds; ++round) {
          rounds[i] = round;
          if (!barrier.Wait()) ++wrong;
          for (int other : rounds) wrong += other != round;
          if (!barrier.Wait()) ++wrong;
        }
      });
    }
    for (std::thread& thread : all) thread.join();
    EXPECT_EQ(wrong, 0) << threads << " threads";
  }
}

TEST(ShardBarrierTest, ClosingWakesThoseThatWait) {
  ShardBarrier barrier(3);
  std::atomic<int> refused{0};
  std::vector<std::thread> waiting;
  for (int i = 0; i < 2; ++i) waiting.emplace_back([&] { refused += barrier.Wait() ? 0 : 1; });
  barrier.Close();
  for (std::thread& thread : waiting) thread.join();
  EXPECT_EQ(refused, 2);
  EXPECT_FALSE(barrier.Wait()) << "closed for good";
}

TEST(ShardTeamTest, EachShardDoesItsWorkInItsThread) {
  for (uint32_t shards : {1u, 2u, 4u}) {
    ShardTeam team(shards);
    std::vector<std::thread::id> threads(shards);
    team.Run([&](uint32_t shard) { threads[shard] = std::this_thread::get_id(); });
    EXPECT_EQ(threads[0], std::this_thread::get_id());
    std::vector<int> done(shards, 0);
    for (int round = 0; round < 500; ++round) {
      team.Run([&](uint32_t shard) { done[shard] += threads[shard] == std::this_thread::get_id() ? 1 : 0; });
    }
    for (int rounds : done) EXPECT_EQ(rounds, 500);
  }
}

}  // namespace
}  // namespace millrace
