#include "common/bounded_queue.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// A thread of which one can wait until it sleeps: until it waits in the queue, for it does nothing else.
class Waiter {
 public:
  explicit Waiter(std::function<void()> body)
      : thread_([this, body = std::move(body)] {
          id_ = static_cast<pid_t>(syscall(SYS_gettid));
          body();
        }) {}
  ~Waiter() { thread_.join(); }

  void AwaitAsleep() const {
    while (State() != 'S') std::this_thread::yield();
  }

 private:
  // As the kernel tells it (proc(5)): 'S' is an interruptible sleep.
  char State() const {
    const pid_t id = id_;
    if (id == 0) return '?';
    std::ifstream file(absl::StrCat("/proc/self/task/", id, "/stat"));
    std::string line;
    std::getline(file, line);
    const size_t end_of_name = line.rfind(')');
    return end_of_name == std::string::npos || end_of_name + 2 >= line.size() ? '?' : line[end_of_name + 2];
  }

  std::atomic<pid_t> id_ = 0;
  std::thread thread_;
};

TEST(BoundedQueueTest, GivesItemsInTheOrderOfTheirPushes) {
  BoundedQueue<int> queue(3);
  for (int i = 1; i <= 3; ++i) EXPECT_TRUE(queue.Push(i));
  EXPECT_EQ(queue.size(), 3u);
  for (int i = 1; i <= 3; ++i) EXPECT_EQ(queue.Pop(), i);
  EXPECT_EQ(queue.size(), 0u);
}

TEST(BoundedQueueTest, TakesNoMoreThanItsCapacity) {
  BoundedQueue<int> queue(2);
  EXPECT_EQ(queue.capacity(), 2u);
  EXPECT_TRUE(queue.TryPush(1));
  EXPECT_TRUE(queue.TryPush(2));
  EXPECT_FALSE(queue.TryPush(3));
  EXPECT_EQ(queue.size(), 2u);
  EXPECT_EQ(queue.Pop(), 1);
  EXPECT_TRUE(queue.TryPush(4));
  EXPECT_THAT(queue.PopAll(), ElementsAre(2, 4));
}

TEST(BoundedQueueTest, LeavesAnItemAloneThatItDoesNotTake) {
  BoundedQueue<std::unique_ptr<int>> queue(1);
  auto first = std::make_unique<int>(1);
  EXPECT_TRUE(queue.TryPush(first));
  EXPECT_EQ(first, nullptr);
  auto second = std::make_unique<int>(2);
  EXPECT_FALSE(queue.TryPush(second));
  ASSERT_NE(second, nullptr);
  queue.Pop();
  queue.Close();
  EXPECT_FALSE(queue.TryPush(second));
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(*second, 2);
}

TEST(BoundedQueueTest, DrainsAfterClose) {
  BoundedQueue<int> queue(4);
  for (int i = 1; i <= 3; ++i) queue.Push(i);
  EXPECT_FALSE(queue.closed());
  queue.Close();
  EXPECT_TRUE(queue.closed());
  EXPECT_FALSE(queue.Push(4));
  EXPECT_FALSE(queue.TryPush(4));
  EXPECT_EQ(queue.Pop(), 1);
  EXPECT_THAT(queue.PopAll(), ElementsAre(2, 3));
  EXPECT_EQ(queue.Pop(), std::nullopt);
  EXPECT_THAT(queue.PopAll(), IsEmpty());
}

TEST(BoundedQueueTest, MayBeClosedTwice) {
  BoundedQueue<int> queue(1);
  queue.Close();
  queue.Close();
  EXPECT_EQ(queue.Pop(), std::nullopt);
}

TEST(BoundedQueueTest, WaitsNoLongerThanItsTimeout) {
  BoundedQueue<int> queue(1);
  for (const absl::Duration timeout : {-absl::Seconds(1), absl::ZeroDuration(), absl::Milliseconds(20)}) {
    const absl::Time start = Clock::Steady().Now();
    EXPECT_EQ(queue.Pop(timeout), std::nullopt);
    EXPECT_THAT(queue.PopAll(timeout), IsEmpty());
    const absl::Duration took = Clock::Steady().Now() - start;
    EXPECT_GE(took, 2 * timeout);
    EXPECT_LT(took, absl::Seconds(20));
  }
}

TEST(BoundedQueueTest, GivesWhatIsThereWhateverTheTimeout) {
  BoundedQueue<int> queue(2);
  queue.Push(1);
  EXPECT_EQ(queue.Pop(absl::ZeroDuration()), 1);
  queue.Push(2);
  EXPECT_THAT(queue.PopAll(-absl::Seconds(1)), ElementsAre(2));
}

TEST(BoundedQueueTest, WakesAWaitingPopOnPush) {
  for (const absl::Duration timeout : {absl::InfiniteDuration(), absl::Hours(1)}) {
    BoundedQueue<int> queue(1);
    Waiter waiter([&] { EXPECT_EQ(queue.Pop(timeout), 7); });
    waiter.AwaitAsleep();
    EXPECT_TRUE(queue.Push(7));
  }
}

TEST(BoundedQueueTest, WakesAWaitingPopAllOnPush) {
  BoundedQueue<int> queue(1);
  Waiter waiter([&] { EXPECT_THAT(queue.PopAll(), ElementsAre(7)); });
  waiter.AwaitAsleep();
  EXPECT_TRUE(queue.Push(7));
}

TEST(BoundedQueueTest, WakesEveryWaitingPopOnClose) {
  BoundedQueue<int> queue(1);
  Waiter one([&] { EXPECT_EQ(queue.Pop(), std::nullopt); });
  Waiter two([&] { EXPECT_EQ(queue.Pop(absl::Hours(1)), std::nullopt); });
  Waiter three([&] { EXPECT_THAT(queue.PopAll(), IsEmpty()); });
  one.AwaitAsleep();
  two.AwaitAsleep();
  three.AwaitAsleep();
  queue.Close();
}

TEST(BoundedQueueTest, WakesAWaitingPushOnPop) {
  BoundedQueue<int> queue(1);
  queue.Push(1);
  {
    Waiter waiter([&] { EXPECT_TRUE(queue.Push(2)); });
    waiter.AwaitAsleep();
    EXPECT_EQ(queue.size(), 1u);
    EXPECT_EQ(queue.Pop(), 1);
  }
  EXPECT_EQ(queue.Pop(), 2);
}

TEST(BoundedQueueTest, WakesEveryWaitingPushOnPopAll) {
  BoundedQueue<int> queue(2);
  queue.Push(1);
  queue.Push(1);
  {
    Waiter one([&] { EXPECT_TRUE(queue.Push(2)); });
    Waiter two([&] { EXPECT_TRUE(queue.Push(2)); });
    one.AwaitAsleep();
    two.AwaitAsleep();
    EXPECT_THAT(queue.PopAll(), ElementsAre(1, 1));
  }
  EXPECT_THAT(queue.PopAll(), ElementsAre(2, 2));
}

TEST(BoundedQueueTest, WakesEveryWaitingPushOnClose) {
  BoundedQueue<int> queue(1);
  queue.Push(1);
  {
    Waiter one([&] { EXPECT_FALSE(queue.Push(2)); });
    Waiter two([&] { EXPECT_FALSE(queue.Push(3)); });
    one.AwaitAsleep();
    two.AwaitAsleep();
    queue.Close();
  }
  EXPECT_THAT(queue.PopAll(), ElementsAre(1));
}

TEST(BoundedQueueTest, LosesNothingBetweenManyThreads) {
  constexpr int kProducers = 3, kConsumers = 3, kItems = 3000;
  BoundedQueue<std::pair<int, int>> queue(4);
  std::atomic<int> popped = 0;
  std::atomic<bool> in_order = true;
  std::vector<std::thread> consumers, producers;
  for (int c = 0; c < kConsumers; ++c) {
    consumers.emplace_back([&, c] {
      std::vector<int> last(kProducers, -1);
      const auto take = [&](const std::pair<int, int>& item) {
        if (item.second <= last[item.first]) in_order = false;
        last[item.first] = item.second;
        ++popped;
      };
      while (true) {
        if (c == 0) {
          const auto items = queue.PopAll();
          if (items.empty()) return;
          for (const auto& item : items) take(item);
        } else {
          const auto item = queue.Pop();
          if (!item) return;
          take(*item);
        }
      }
    });
  }
  for (int p = 0; p < kProducers; ++p) {
    producers.emplace_back([&, p] {
      for (int i = 0; i < kItems; ++i) EXPECT_TRUE(queue.Push({p, i}));
    });
  }
  for (std::thread& producer : producers) producer.join();
  queue.Close();
  for (std::thread& consumer : consumers) consumer.join();
  EXPECT_EQ(popped, kProducers * kItems);
  EXPECT_TRUE(in_order);
}

}  // namespace
}  // namespace millrace
