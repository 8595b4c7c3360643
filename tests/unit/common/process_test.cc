#include "common/process.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>

#include "common/bounded_queue.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

bool IsBlocked(int signal) {
  sigset_t set;
  pthread_sigmask(SIG_SETMASK, nullptr, &set);
  return sigismember(&set, signal) == 1;
}

// Gives the test's thread its signals back.
class ProcessTest : public ::testing::Test {
 protected:
  ProcessTest() { pthread_sigmask(SIG_SETMASK, nullptr, &former_); }
  ~ProcessTest() override { pthread_sigmask(SIG_SETMASK, &former_, nullptr); }
  sigset_t former_;
};

TEST_F(ProcessTest, TurnsTheFirstStopSignalIntoACall) {
  for (const int signal : {SIGTERM, SIGINT}) {
    BoundedQueue<int> seen(1);
    SignalWatcher watcher([&](int number) { seen.Push(number); });
    ASSERT_EQ(kill(getpid(), signal), 0);
    EXPECT_EQ(seen.Pop(absl::Seconds(60)), signal);
  }
}

TEST_F(ProcessTest, NamesAThread) {
  char name[16] = {};
  std::thread([&] {
    NameThread("fifteen letters");
    ASSERT_EQ(pthread_getname_np(pthread_self(), name, sizeof(name)), 0);
  }).join();
  EXPECT_STREQ(name, "fifteen letters");
}

TEST_F(ProcessTest, EndsWithoutASignal) {
  SignalWatcher watcher([](int) { FAIL(); });
}

TEST_F(ProcessTest, BlocksTheStopSignalsAndNoOthers) {
  BlockStopSignals();
  EXPECT_TRUE(IsBlocked(SIGTERM));
  EXPECT_TRUE(IsBlocked(SIGINT));
  EXPECT_FALSE(IsBlocked(SIGUSR1));
}

// The callback of the first signal never returns to a process that is stuck; the second must still end it.
TEST_F(ProcessTest, EndsTheProcessAtTheSecondSignal) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        BoundedQueue<int> seen(2);
        SignalWatcher watcher([&](int number) { seen.Push(number); });
        kill(getpid(), SIGTERM);
        seen.Pop();
        kill(getpid(), SIGINT);
        seen.Pop();
      },
      ::testing::ExitedWithCode(128 + SIGINT), "");
}

TEST_F(ProcessTest, KnowsMemoryAndHost) {
  EXPECT_GT(AvailableMemoryBytes(), uint64_t{1} << 20);
  EXPECT_LT(AvailableMemoryBytes(), uint64_t{1} << 50);
  EXPECT_FALSE(HostName().empty());
}

TEST_F(ProcessTest, CountsTheCoresItMayUse) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  EXPECT_EQ(CountCpus().allowed, CPU_COUNT(&before));
  EXPECT_GE(CountCpus().present, 1);
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu) {
    if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(CountCpus().allowed, 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
}

TEST_F(ProcessTest, WarnsOnlyIfConfined) {
  const CpuCount cpus = CountCpus();
  if (cpus.allowed == cpus.present) {
    ::testing::internal::CaptureStderr();
    WarnIfConfined(1 << 20);
    EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  }
  if (cpus.present < 2) return;
  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu) {
    if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  ::testing::internal::CaptureStderr();
  WarnIfConfined(1);
  const std::string log = ::testing::internal::GetCapturedStderr();
  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
  EXPECT_NE(log.find("may use 1 of"), std::string::npos) << log;
}

TEST_F(ProcessTest, ListsTheCoresItMayUse) {
  const std::vector<int> cores = AllowedCores();
  EXPECT_EQ(static_cast<int>(cores.size()), CountCpus().allowed);
  EXPECT_TRUE(std::is_sorted(cores.begin(), cores.end()));
  EXPECT_EQ(CoreListText({}), "");
  EXPECT_EQ(CoreListText({3}), "3");
  EXPECT_EQ(CoreListText({0, 1, 2, 3, 8}), "0-3,8");
  EXPECT_EQ(CoreListText({1, 3, 4}), "1,3-4");
}

TEST_F(ProcessTest, KnowsItsMachineAndItsTime) {
  EXPECT_EQ(MachineIdentity().size(), 36u);
  EXPECT_EQ(MachineIdentity(), MachineIdentity());
  EXPECT_GE(CpuTimeLimit(), 1u);
}

TEST_F(ProcessTest, RaisesTheFileLimitToItsBound) {
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit low = before;
  low.rlim_cur = 256;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  RaiseFileLimit();
  rlimit after;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &after), 0);
  EXPECT_EQ(after.rlim_cur, before.rlim_max);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

}  // namespace
}  // namespace millrace
