#include "deploy/mpi/rendezvous.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/transport/channels.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A port of the loopback interface, listened on or only taken.
class Port {
 public:
  explicit Port(bool listening) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    if (listening) {
      EXPECT_EQ(listen(fd_, 8), 0);
    }
    address_ = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  }
  ~Port() { close(fd_); }
  const std::string& address() const { return address_; }

 private:
  const int fd_;
  std::string address_;
};

TEST(InvitationTest, ComesBackAsItWas) {
  const Invitation invitation{"", "s3cret", {"10.0.0.1:7000", "[::1]:7000"}};
  const absl::StatusOr<Invitation> back = DecodeInvitation(EncodeInvitation(invitation));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->error, "");
  EXPECT_EQ(back->secret, "s3cret");
  EXPECT_THAT(back->addresses, ElementsAre("10.0.0.1:7000", "[::1]:7000"));
}

TEST(InvitationTest, SaysThatThereIsNothingToJoin) {
  const absl::StatusOr<Invitation> back = DecodeInvitation(EncodeInvitation({"see rank 0", "", {}}));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->error, "see rank 0");
  EXPECT_THAT(back->addresses, IsEmpty());
}

TEST(InvitationTest, RefusesWhatIsNone) {
  for (const char* text : {"", "one", "one\ntwo", "one\ntwo\nthree\nfour"}) {
    EXPECT_EQ(DecodeInvitation(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(ReachableAddressesTest, IsTheOneListenedOn) {
  EXPECT_THAT(ReachableAddresses("10.1.2.3:7000"), ElementsAre("10.1.2.3:7000"));
  EXPECT_THAT(ReachableAddresses("127.0.0.1:7000"), ElementsAre("127.0.0.1:7000"));
}

TEST(ReachableAddressesTest, IsEveryAddressOfTheHostWithLoopbackLast) {
  const std::vector<std::string> addresses = ReachableAddresses("0.0.0.0:7000");
  ASSERT_FALSE(addresses.empty());
  EXPECT_EQ(addresses.back(), "127.0.0.1:7000");
  for (size_t i = 0; i < addresses.size(); ++i) {
    const absl::StatusOr<HostPort> parsed = ParseHostPort(addresses[i]);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->port, 7000);
    EXPECT_FALSE(IsAnyAddress(parsed->host));
    EXPECT_EQ(IsLoopback(parsed->host), i + 1 == addresses.size()) << addresses[i];
  }
}

TEST(AddressInsideTest, GoesByNameOrNetwork) {
  for (const char* interface : {"lo", "127.0.0.0/8", "127.0.0.1/32", "127.1.2.3/8"}) {
    const absl::StatusOr<std::string> address = AddressInside(interface);
    ASSERT_TRUE(address.ok()) << address.status();
    EXPECT_EQ(*address, "127.0.0.1");
  }
  for (const char* interface : {"no-such0", "240.1.2.0/24", "127.0.0.2/32"}) {
    EXPECT_EQ(AddressInside(interface).status().code(), absl::StatusCode::kNotFound) << interface;
  }
  for (const char* interface : {"10.0.0.0/33", "10.0.0/8", "/8", "10.0.0.0/", "::1/128"}) {
    EXPECT_EQ(AddressInside(interface).status().code(), absl::StatusCode::kInvalidArgument) << interface;
  }
}

std::optional<uint32_t> RankWith(const std::map<std::string, std::string>& variables) {
  return RankInEnvironment([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

TEST(RankInEnvironmentTest, KnowsWhatStartsRanks) {
  EXPECT_EQ(RankWith({}), std::nullopt);
  EXPECT_EQ(RankWith({{"OMPI_COMM_WORLD_RANK", "3"}, {"OMPI_COMM_WORLD_SIZE", "4"}}), 3u);
  EXPECT_EQ(RankWith({{"PMIX_RANK", "2"}, {"PMIX_NAMESPACE", "prterun-n1-7@1"}}), 2u);
  EXPECT_EQ(RankWith({{"PMI_RANK", "0"}}), 0u);
  EXPECT_EQ(RankWith({{"SLURM_PROCID", "5"}, {"SLURM_NTASKS", "8"}}), 5u);
  // Inside an allocation mpirun's own daemons are Slurm's tasks: Open MPI's number counts.
  EXPECT_EQ(RankWith({{"SLURM_PROCID", "0"}, {"PMIX_RANK", "6"}, {"OMPI_COMM_WORLD_RANK", "6"}}), 6u);
}

TEST(RankInEnvironmentTest, PassesOverWhatIsNoRank) {
  EXPECT_EQ(RankWith({{"OMPI_COMM_WORLD_RANK", ""}, {"PMIX_RANK", "-1"}, {"SLURM_PROCID", "4"}}), 4u);
  EXPECT_EQ(RankWith({{"PMI_RANK", "99999999999"}}), std::nullopt);
}

TEST(FirstThatAnswersTest, TakesTheFirstOfThoseThatAnswer) {
  const Port dead(false), first(true), second(true);
  const auto answer =
      FirstThatAnswers({"nonsense", dead.address(), first.address(), second.address()}, absl::Seconds(60));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(*answer, first.address());
}

TEST(FirstThatAnswersTest, SaysWhenNoneDoes) {
  const Port dead(false);
  for (const auto& addresses : {std::vector<std::string>{}, {dead.address(), "nonsense", ":1"}}) {
    const absl::Status status = FirstThatAnswers(addresses, absl::Milliseconds(1)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0 cannot be reached at any of "));
    if (!addresses.empty()) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(dead.address()));
    }
  }
}

}  // namespace
}  // namespace millrace
