#include "kernels/cpu/thread_team.h"

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace millrace::kernels {
namespace {

constexpr std::chrono::seconds kDeadline{60};

std::unique_ptr<ThreadTeam> MakeTeam(size_t threads, std::vector<int> cores = {}) {
  auto team = ThreadTeam::Create(threads, std::move(cores));
  EXPECT_TRUE(team.ok()) << team.status();
  return *std::move(team);
}

template <class Condition>
void Await(const Condition& condition) {
  const auto deadline = std::chrono::steady_clock::now() + kDeadline;
  while (!condition()) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "what was waited for did not happen";
    sched_yield();
  }
}

// A thread of this process as the kernel sees it: name and state ("S": asleep).
struct ThreadState {
  std::string name;
  char state = '?';
};

ThreadState StateOf(pid_t thread) {
  std::ifstream file("/proc/self/task/" + std::to_string(thread) + "/stat");
  std::string line;
  std::getline(file, line);
  const size_t open = line.find('('), close = line.rfind(')');
  if (open == std::string::npos || close == std::string::npos || close + 2 >= line.size()) return {};
  return {line.substr(open + 1, close - open - 1), line[close + 2]};
}

pid_t CurrentThread() {
  return static_cast<pid_t>(syscall(SYS_gettid));
}

// The states of the team's helpers; their names are as ThreadTeam gave them.
std::vector<ThreadState> Helpers() {
  std::vector<ThreadState> helpers;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    const ThreadState thread = StateOf(std::stoi(entry.path().filename().string()));
    if (thread.name.rfind("compute-", 0) == 0) helpers.push_back(thread);
  }
  return helpers;
}

void AwaitSleepOfAll(size_t count) {
  Await([count] {
    const std::vector<ThreadState> helpers = Helpers();
    size_t asleep = 0;
    for (const ThreadState& helper : helpers) asleep += helper.state == 'S' ? 1 : 0;
    return helpers.size() == count && asleep == count;
  });
}

// Runs `count` shares that count themselves, and checks that each ran once.
void ExpectEachShareOnce(ThreadTeam& team, size_t count) {
  std::vector<int> runs(count, 0);
  team.Run(count, [&](WorkShare share) {
    EXPECT_EQ(share.count, count);
    ++runs[share.index];
  });
  EXPECT_EQ(runs, std::vector<int>(count, 1));
}

TEST(ThreadTeamTest, RunsEachShareOnce) {
  for (const size_t threads : {1, 2, 3, 5, 16}) {
    const auto team = MakeTeam(threads);
    EXPECT_EQ(team->threads(), threads);
    for (const size_t count : {0, 1, 2, 3, 5, 16, 40}) ExpectEachShareOnce(*team, count);
  }
}

TEST(ThreadTeamTest, ManyShortRunsFollowEachOther) {
  for (const size_t threads : {2, 5}) {
    const auto team = MakeTeam(threads);
    std::vector<uint64_t> sums(threads, 0);
    constexpr uint64_t kRuns = 20000;
    // Each reads what another wrote in the run before.
    for (uint64_t run = 0; run < kRuns; ++run) {
      std::vector<uint64_t>& out = sums;
      const uint64_t first = sums[0];
      team->Run(threads, [&out, first](WorkShare share) { out[share.index] = first + share.index + 1; });
      ASSERT_EQ(sums[threads - 1], first + threads);
    }
    EXPECT_EQ(sums[0], kRuns);
  }
}

TEST(ThreadTeamTest, WakesHelpersThatSleepAndIsDestroyedWhileTheySleep) {
  const auto team = MakeTeam(3);
  for (int i = 0; i < 3; ++i) {
    AwaitSleepOfAll(2);
    // Each waits for the others, so all three threads must be there.
    std::atomic<size_t> arrived{0};
    team->Run(3, [&arrived](WorkShare) {
      ++arrived;
      Await([&arrived] { return arrived.load() == 3; });
    });
    EXPECT_EQ(arrived.load(), 3u);
  }
  AwaitSleepOfAll(2);
}

TEST(ThreadTeamTest, HelpersEndBeforeAndAfterTheirFirstSleep) {
  for (int i = 0; i < 200; ++i) MakeTeam(3);
  EXPECT_TRUE(Helpers().empty());
}

TEST(ThreadTeamTest, WakesTheCallerThatSleepsWhileAHelperWorks) {
  const auto team = MakeTeam(2);
  const pid_t caller = CurrentThread();
  for (int i = 0; i < 20; ++i) {
    std::atomic<bool> helper_works{false};
    int written = 0;
    team->Run(2, [&](WorkShare) {
      if (CurrentThread() == caller) return Await([&] { return helper_works.load(); });
      helper_works = true;
      Await([&] { return StateOf(caller).state == 'S'; });
      written = i + 1;
    });
    EXPECT_EQ(written, i + 1);
  }
}

TEST(ThreadTeamTest, TheCallerDoesTheSharesThatNobodyTakes) {
  // More shares than threads, one of which is held for as long as the others take.
  const auto team = MakeTeam(2);
  std::atomic<int> done{0};
  team->Run(9, [&](WorkShare share) {
    if (share.index == 8) Await([&] { return done.load() == 8; });
    ++done;
  });
  EXPECT_EQ(done.load(), 9);
}

TEST(ThreadTeamTest, NamesItsHelpers) {
  const auto team = MakeTeam(3);
  AwaitSleepOfAll(2);
  std::vector<std::string> names;
  for (const ThreadState& helper : Helpers()) names.push_back(helper.name);
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names, (std::vector<std::string>{"compute-1", "compute-2"}));
}

std::vector<int> AllowedCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  std::vector<int> cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(static_cast<size_t>(core), &set)) cores.push_back(core);
  }
  return cores;
}

TEST(ThreadTeamTest, PinsHelpersAtOnceAndTheCallerWhenAsked) {
  const std::vector<int> allowed = AllowedCores();
  const std::vector<int> cores = {allowed.back(), allowed.front()};
  // A thread of its own is the caller, so that the tests after this one are not confined.
  std::thread([&] {
    const auto team = MakeTeam(2, cores);
    EXPECT_EQ(AllowedCores(), allowed);
    team->PinCaller();
    EXPECT_EQ(AllowedCores(), std::vector<int>{allowed.back()});
    const pid_t caller = CurrentThread();
    std::atomic<bool> helper_came{false};
    std::vector<int> of_helper;
    team->Run(2, [&](WorkShare) {
      if (CurrentThread() == caller) return Await([&] { return helper_came.load(); });
      of_helper = AllowedCores();
      helper_came = true;
    });
    EXPECT_EQ(of_helper, std::vector<int>{allowed.front()});
  }).join();
  const auto team = MakeTeam(2);
  team->PinCaller();
  EXPECT_EQ(AllowedCores(), allowed);
}

TEST(ThreadTeamTest, RefusesWhatCannotBe) {
  EXPECT_EQ(ThreadTeam::Create(0, {}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ThreadTeam::Create(ThreadTeam::kMaxThreads + 1, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  for (const int core : {-1, CPU_SETSIZE - 1, CPU_SETSIZE}) {
    EXPECT_EQ(ThreadTeam::Create(2, {core}).status().code(), absl::StatusCode::kInvalidArgument) << core;
  }
}

}  // namespace
}  // namespace millrace::kernels
