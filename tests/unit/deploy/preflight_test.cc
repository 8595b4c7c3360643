// What hosts report before a start, and what is made of it.
#include "deploy/mpi/preflight.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

constexpr int64_t kNow = 1700000000;

struct Says {
  std::string version = "1.0";
  std::string build = "b1";
  std::string fingerprint = "f1";
  std::vector<std::string> problems;
  int64_t clock = kNow;
};

HostAnswer Reports(const std::string& host, const Says& says) {
  HostAnswer answer{host, absl::FromUnixSeconds(kNow - 1), absl::FromUnixSeconds(kNow + 1), 0, {}};
  answer.output = {"a banner of the login", "millrace-preflight 1", "version " + says.version,
                   "build " + says.build};
  if (!says.fingerprint.empty()) answer.output.push_back("fingerprint " + says.fingerprint);
  for (const std::string& problem : says.problems) answer.output.push_back("problem " + problem);
  answer.output.push_back(absl::StrCat("clock ", says.clock, ".5"));
  answer.output.push_back("end");
  return answer;
}

HostAnswer Silent(int code, std::vector<std::string> output) {
  return {"b", absl::FromUnixSeconds(kNow), absl::FromUnixSeconds(kNow + 60), code, std::move(output)};
}

TEST(ParseRankRangeTest, TakesThreeNumbers) {
  const auto ranks = ParseRankRange("2:3:9");
  ASSERT_TRUE(ranks.ok()) << ranks.status();
  EXPECT_EQ(ranks->first, 2u);
  EXPECT_EQ(ranks->count, 3u);
  EXPECT_EQ(ranks->size, 9u);
  for (const char* text :
       {"", "1", "1:2", "0:0:3", "2:2:3", "4:1:3", "-1:1:3", "0:4294967295:3", "0:1:65537", "0:1:3:4"}) {
    EXPECT_EQ(ParseRankRange(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(ReadHostAnswersTest, ReadsBlocks) {
  const auto answers = ReadHostAnswers("host a 10.5 11.25 0\n\tone\n\t\n\ttwo words\nhost b 1 2 124\n");
  ASSERT_TRUE(answers.ok()) << answers.status();
  ASSERT_EQ(answers->size(), 2u);
  EXPECT_EQ((*answers)[0].host, "a");
  EXPECT_EQ((*answers)[0].ended - (*answers)[0].began, absl::Milliseconds(750));
  EXPECT_THAT((*answers)[0].output, ElementsAre("one", "", "two words"));
  EXPECT_EQ((*answers)[1].exit_code, 124);
  for (const char* text : {"\tone\n", "host a 1 2\n", "host a x 2 0\n", "else\n"}) {
    EXPECT_EQ(ReadHostAnswers(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(JudgeHostsTest, LetsEqualsStart) {
  const Verdict verdict = JudgeHosts({Reports("a", {}), Reports("b", {})});
  EXPECT_THAT(verdict.failures, IsEmpty());
  EXPECT_THAT(verdict.summary, AllOf(HasSubstr("2 hosts are ready"), HasSubstr("1.0"), HasSubstr("f1")));
}

TEST(JudgeHostsTest, NamesEveryHostThatDiffers) {
  Says version, build, model, clock, problems;
  version.version = "2.0";
  build.build = "b2";
  model.fingerprint = "f2";
  clock.clock = kNow + 100;
  problems.fingerprint = "";
  problems.problems = {"no model", "no memory"};
  const Verdict verdict =
      JudgeHosts({Reports("a", {}), Reports("v", version), Reports("w", build), Reports("m", model),
                  Reports("c", clock), Reports("p", problems), Reports("z", {})});
  EXPECT_THAT(verdict.failures,
              ElementsAre(StartsWith("v: millrace-mpi there is version 2.0, on a 1.0"),
                          StartsWith("w: millrace-mpi there is another build of 1.0 (b2, on a b1)"),
                          StartsWith("m: the model file there is another (f2, on a f1)"),
                          StartsWith("c: its clock is 1m39s off"), "p: no model", "p: no memory"));
  EXPECT_EQ(verdict.summary, "");
}

TEST(JudgeHostsTest, HoldsHostsToTheFirstThatReported) {
  Says first, other;
  first.fingerprint = "";
  first.problems = {"no model"};
  other.fingerprint = "f2";
  const Verdict verdict =
      JudgeHosts({Silent(255, {}), Reports("c", first), Reports("d", {}), Reports("e", other)});
  EXPECT_THAT(verdict.failures, ElementsAre(StartsWith("b: cannot be reached"), "c: no model",
                                            HasSubstr("e: the model file there is another (f2, on d f1)")));
}

TEST(JudgeHostsTest, AllowsForTheTimeThatAskingTook) {
  for (const int64_t off : {-6, -5, 5}) {
    Says says;
    says.clock = kNow + off;
    EXPECT_THAT(JudgeHosts({Reports("a", says)}).failures, IsEmpty()) << off;
  }
  for (const int64_t off : {-7, 6}) {
    Says says;
    says.clock = kNow + off;
    EXPECT_THAT(JudgeHosts({Reports("a", says)}).failures, ElementsAre(StartsWith("a: its clock is"))) << off;
  }
}

TEST(JudgeHostsTest, SaysWhyThereIsNoReport) {
  const std::vector<std::pair<HostAnswer, std::string>> cases = {
      {Silent(124, {}), "no answer within 1m"},
      {Silent(255, {"", "-----", "ssh: connect to host b port 22: No route to host", "ORTE was unable"}),
       "cannot be reached, or starts nothing (exit code 255): ssh: connect to host b port 22"},
      {Silent(1, {"mpirun was unable to find the specified executable file, and therefore"}),
       "cannot be run there"},
      {Silent(2, {"millrace-mpi: unknown flag --preflight"}), "does not know --preflight"},
      {Silent(0, {"millrace-preflight 1", "version 1.0"}), "cannot be reached, or starts nothing"},
  };
  for (const auto& [answer, why] : cases) {
    EXPECT_THAT(JudgeHosts({answer}).failures, ElementsAre(AllOf(StartsWith("b: "), HasSubstr(why))));
  }
}

TEST(PreflightReportTest, IsOneThatIsUnderstood) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  ASSERT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const std::string taken = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  PreflightTask task;
  task.model = "/no/such/model.gguf";
  task.listens = {taken, "127.0.0.1:0", "240.1.2.1:1"};
  task.interface = "240.1.2.0/24";
  const absl::Time before = absl::Now();
  HostAnswer answer{"h", before, before, 0, absl::StrSplit(PreflightReport(task), '\n')};
  answer.ended = before + absl::Minutes(1);
  EXPECT_THAT(JudgeHosts({answer}).failures,
              ElementsAre(HasSubstr("/no/such/model.gguf"), HasSubstr("no IPv4 address inside 240.1.2.0/24"),
                          HasSubstr(absl::StrCat("cannot listen on ", taken, ": Address already in use")),
                          HasSubstr("cannot listen on 240.1.2.1:1: Cannot assign")));
  // Only rank 0 listens there.
  task.ranks = {1, 1, 2};
  answer.output = absl::StrSplit(PreflightReport(task), '\n');
  EXPECT_THAT(JudgeHosts({answer}).failures, Not(Contains(HasSubstr("cannot listen"))));
  EXPECT_THAT(JudgeHosts({answer}).failures, Contains(HasSubstr("/no/such/model.gguf")));
  // Unless it is sent there.
  task.model_is_sent = true;
  answer.output = absl::StrSplit(PreflightReport(task), '\n');
  EXPECT_THAT(JudgeHosts({answer}).failures, Not(Contains(HasSubstr("/no/such/model.gguf"))));
  task.ranks = {0, 1, 2};
  answer.output = absl::StrSplit(PreflightReport(task), '\n');
  EXPECT_THAT(JudgeHosts({answer}).failures, Contains(HasSubstr("/no/such/model.gguf")));
  task.tls.cert = "/no/such/cert.pem";
  task.tls.key = "/no/such/key.pem";
  task.tls.ca = "/no/such/ca.pem";
  answer.output = absl::StrSplit(PreflightReport(task), '\n');
  EXPECT_THAT(JudgeHosts({answer}).failures, Contains(AllOf(StartsWith("h: "), HasSubstr("/no/such/c"))));
  close(fd);
}

}  // namespace
}  // namespace millrace
