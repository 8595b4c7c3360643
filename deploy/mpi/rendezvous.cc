#include "deploy/mpi/rendezvous.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/transport/channels.h"

namespace millrace {
namespace {

constexpr int kConnectMillis = 1000;
constexpr absl::Duration kRetry = absl::Milliseconds(100);

// Whether a TCP connection to the address comes about within kConnectMillis.
bool Answers(const addrinfo& address) {
  const int fd = socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return false;
  int error = 0;
  if (connect(fd, address.ai_addr, address.ai_addrlen) != 0) {
    error = errno;
    if (error == EINPROGRESS) {
      pollfd waiting = {fd, POLLOUT, 0};
      socklen_t size = sizeof(error);
      if (poll(&waiting, 1, kConnectMillis) != 1 ||
          getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) {
        error = ETIMEDOUT;
      }
    }
  }
  close(fd);
  return error == 0;
}

bool Answers(const std::string& text) {
  const absl::StatusOr<HostPort> address = ParseHostPort(text);
  if (!address.ok()) return false;
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(address->host.c_str(), absl::StrCat(address->port).c_str(), &hints, &found) != 0)
    return false;
  bool answers = false;
  for (const addrinfo* it = found; it != nullptr && !answers; it = it->ai_next) answers = Answers(*it);
  freeaddrinfo(found);
  return answers;
}

}  // namespace

std::string EncodeInvitation(const Invitation& invitation) {
  return absl::StrCat(invitation.error, "\n", invitation.secret, "\n",
                      absl::StrJoin(invitation.addresses, " "));
}

absl::StatusOr<Invitation> DecodeInvitation(const std::string& text) {
  const std::vector<std::string> lines = absl::StrSplit(text, '\n');
  if (lines.size() != 3) return absl::InvalidArgumentError("rank 0 sent something that is not an invitation");
  Invitation invitation;
  invitation.error = lines[0];
  invitation.secret = lines[1];
  invitation.addresses = absl::StrSplit(lines[2], ' ', absl::SkipEmpty());
  return invitation;
}

std::vector<std::string> ReachableAddresses(const std::string& listen) {
  const absl::StatusOr<HostPort> address = ParseHostPort(listen);
  if (!address.ok() || !IsAnyAddress(address->host)) return {listen};
  std::vector<std::string> result;
  ifaddrs* interfaces = nullptr;
  if (getifaddrs(&interfaces) == 0) {
    for (const ifaddrs* it = interfaces; it != nullptr; it = it->ifa_next) {
      if (it->ifa_addr == nullptr || it->ifa_addr->sa_family != AF_INET) continue;
      if ((it->ifa_flags & IFF_UP) == 0 || (it->ifa_flags & IFF_LOOPBACK) != 0) continue;
      char text[INET_ADDRSTRLEN];
      const auto* ip = reinterpret_cast<const sockaddr_in*>(it->ifa_addr);
      if (inet_ntop(AF_INET, &ip->sin_addr, text, sizeof(text)) == nullptr) continue;
      result.push_back(HostPort{text, address->port}.ToString());
    }
    freeifaddrs(interfaces);
  }
  result.push_back(HostPort{"127.0.0.1", address->port}.ToString());
  return result;
}

absl::StatusOr<std::string> AddressInside(const std::string& interface) {
  const std::pair<std::string, std::string> parts = absl::StrSplit(interface, absl::MaxSplits('/', 1));
  const bool by_network = absl::StrContains(interface, '/');
  uint32_t mask = 0;
  in_addr network = {};
  if (by_network) {
    uint32_t bits = 0;
    if (inet_pton(AF_INET, parts.first.c_str(), &network) != 1 || !absl::SimpleAtoi(parts.second, &bits) ||
        bits > 32) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--interface: '", interface, "' is neither an interface nor a network such as 10.0.0.0/24"));
    }
    mask = bits == 0 ? 0 : htonl(UINT32_MAX << (32 - bits));
  }
  std::string result;
  ifaddrs* interfaces = nullptr;
  if (getifaddrs(&interfaces) != 0) return absl::InternalError("the interfaces of this host cannot be read");
  for (const ifaddrs* it = interfaces; it != nullptr && result.empty(); it = it->ifa_next) {
    if (it->ifa_addr == nullptr || it->ifa_addr->sa_family != AF_INET || (it->ifa_flags & IFF_UP) == 0)
      continue;
    const in_addr address = reinterpret_cast<const sockaddr_in*>(it->ifa_addr)->sin_addr;
    const bool inside =
        by_network ? (address.s_addr & mask) == (network.s_addr & mask) : interface == it->ifa_name;
    char text[INET_ADDRSTRLEN];
    if (inside && inet_ntop(AF_INET, &address, text, sizeof(text)) != nullptr) result = text;
  }
  freeifaddrs(interfaces);
  if (!result.empty()) return result;
  return absl::NotFoundError(
      absl::StrCat("--interface: this host has no IPv4 address ", by_network ? "inside " : "on ", interface));
}

std::optional<uint32_t> RankInEnvironment(const std::function<const char*(const char*)>& get_variable) {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"}) {
    const char* text = get_variable(name);
    uint32_t rank = 0;
    if (text != nullptr && absl::SimpleAtoi(text, &rank)) return rank;
  }
  return std::nullopt;
}

absl::StatusOr<std::string> FirstThatAnswers(const std::vector<std::string>& addresses,
                                             absl::Duration timeout) {
  const absl::Time deadline = Clock::Steady().Now() + timeout;
  do {
    for (const std::string& address : addresses) {
      if (Answers(address)) return address;
    }
    absl::SleepFor(kRetry);
  } while (Clock::Steady().Now() < deadline);
  return absl::UnavailableError(
      absl::StrCat("rank 0 cannot be reached at any of ", absl::StrJoin(addresses, ", "), " within ",
                   absl::FormatDuration(timeout), "; name the right one with --cluster-listen"));
}

}  // namespace millrace
