#include "common/log.h"

#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::EndsWith;
using ::testing::MatchesRegex;

class LogTest : public ::testing::Test {
 protected:
  ~LogTest() override { SetLogName("millrace"); }

  template <typename F>
  std::string Written(const F& body) {
    ::testing::internal::CaptureStderr();
    body();
    return ::testing::internal::GetCapturedStderr();
  }
};

TEST_F(LogTest, WritesTimeNameAndMessage) {
  SetLogName("worker 2");
  const std::string line = Written([] { LogInfo("stage ", 1, " of ", 2u, " is loaded"); });
  EXPECT_THAT(line, MatchesRegex("[0-9][0-9]:[0-9][0-9]:[0-9][0-9]\\.[0-9][0-9][0-9] \\[worker 2\\] "
                                 "stage 1 of 2 is loaded\n"));
}

TEST_F(LogTest, NamesTheSeverity) {
  EXPECT_THAT(Written([] { LogWarning("w"); }), EndsWith("[millrace] warning: w\n"));
  EXPECT_THAT(Written([] { LogError("e"); }), EndsWith("[millrace] error: e\n"));
}

TEST_F(LogTest, KeepsAMessageOnOneLine) {
  const std::string line = Written([] { LogInfo("a\nb\r\x1b[31mc\td"); });
  EXPECT_THAT(line, EndsWith("a b  [31mc d\n"));
}

TEST_F(LogTest, DoesNotMixTheLinesOfThreads) {
  constexpr int kThreads = 4, kLines = 100;
  const std::string written = Written([] {
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([t] {
        for (int i = 0; i < kLines; ++i) LogInfo(std::string(300, static_cast<char>('a' + t)), " ", i);
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
  std::vector<std::string> lines = absl::StrSplit(written, '\n', absl::SkipEmpty());
  ASSERT_EQ(lines.size(), size_t{kThreads * kLines});
  std::set<std::string> messages;
  for (const std::string& line : lines) {
    EXPECT_THAT(line, MatchesRegex(".* \\[millrace\\] (a+|b+|c+|d+) [0-9]+"));
    messages.insert(line.substr(line.find(']')));
  }
  EXPECT_EQ(messages.size(), size_t{kThreads * kLines});
}

}  // namespace
}  // namespace millrace
