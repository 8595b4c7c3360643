#include "deploy/mpi/rendezvous.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

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
