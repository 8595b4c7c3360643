#include "common/idle_cores.h"

#include <atomic>
#include <thread>
#include <vector>

#include "common/bounded_queue.h"
#include "common/process.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

TEST(IdleCoresTest, ReadsTheRunnableTasks) {
  EXPECT_EQ(ParseRunnableTasks("8.05 6.03 4.33 3/412 17159\n"), 3);
  EXPECT_EQ(ParseRunnableTasks("0.00 0.00 0.00 1/99 5\n"), 1);
}

TEST(IdleCoresTest, AnythingElseIsUnknown) {
  for (const char* line : {"", "8.05", "8.05 6.03 4.33", "8.05 6.03 4.33 x/2 1", "8.05 6.03 4.33 7",
                           "0 0 0 0/5 1", "0 0 0 -3/5 1"}) {
    EXPECT_EQ(ParseRunnableTasks(line), 0) << line;
  }
}

// As many busy threads as cores, and the caller: nobody may spin.
TEST(IdleCoresTest, NobodySpinsOnABusyMachine) {
  const IdleCores idle;
  std::atomic<bool> stop{false};
  std::atomic<int> running{0};
  std::vector<std::thread> busy;
  for (int i = 0; i < CountCpus().present; ++i) {
    busy.emplace_back([&] {
      ++running;
      while (!stop) {
      }
    });
  }
  while (running < static_cast<int>(busy.size())) std::this_thread::yield();
  EXPECT_FALSE(idle.MaySpin());
  stop = true;
  for (std::thread& thread : busy) thread.join();
}

TEST(SpinForItemTest, EndsWithAnItemWithCloseAndWithTime) {
  BoundedQueue<int> queue(2);
  queue.SpinForItem(absl::Microseconds(10));  // empty: for its time only
  EXPECT_EQ(queue.size(), 0u);
  queue.Push(1);
  queue.SpinForItem(absl::InfiniteDuration());
  EXPECT_EQ(queue.Pop(), 1);
  queue.Push(2);
  EXPECT_EQ(queue.PopAll().size(), 1u);
  std::thread late([&] { queue.Push(3); });
  queue.SpinForItem(absl::InfiniteDuration());
  EXPECT_EQ(queue.size(), 1u);
  late.join();
  EXPECT_EQ(queue.Pop(), 3);
  queue.Close();
  queue.SpinForItem(absl::InfiniteDuration());
}

}  // namespace
}  // namespace millrace
