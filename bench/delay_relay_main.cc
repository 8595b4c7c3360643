// delay_relay: passes TCP connections on and holds every byte for a fixed time in each direction, so that a
// ring on one machine has the links of a wide network. Bytes on their way do not wait for one another: the
// delay line holds any number of them.
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/options.h"
#include "common/status_macros.h"
#include "common/transport/channels.h"

namespace millrace::bench {
namespace {

constexpr size_t kReadBytes = size_t{256} << 10;
// A side that holds so much for a peer is not read from until half of it has gone.
constexpr size_t kMaxHeldBytes = size_t{64} << 20;

absl::Status Errno(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

absl::StatusOr<sockaddr_in> Resolve(const std::string& text) {
  ASSIGN_OR_RETURN(const HostPort address, ParseHostPort(text));
  addrinfo hints{};
  hints.ai_family = AF_INET;
  addrinfo* found = nullptr;
  if (getaddrinfo(address.host.c_str(), nullptr, &hints, &found) != 0 || found == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(address.host, ": no IPv4 address of that name"));
  }
  sockaddr_in result = *reinterpret_cast<sockaddr_in*>(found->ai_addr);
  freeaddrinfo(found);
  result.sin_port = htons(address.port);
  return result;
}

void SetNoDelay(int fd) {
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

// One direction of a connection: bytes read from `from` are due at `to` later.
struct Direction {
  struct Chunk {
    absl::Time due;
    std::vector<char> bytes;
    size_t sent = 0;
  };
  int from = -1;
  int to = -1;
  std::deque<Chunk> line;
  size_t held = 0;
  bool ended = false;    // nothing more comes
  bool closed = false;   // and that was passed on
  bool blocked = false;  // the peer's socket is full
};

struct Connection {
  std::array<Direction, 2> directions;
  bool broken = false;
};

// Thread: main, its only one.
class Relay {
 public:
  Relay(sockaddr_in to, absl::Duration delay) : to_(to), delay_(delay) {}

  absl::Status Listen(sockaddr_in address);
  absl::Status Run();

 private:
  void Accept();
  void Watch(int fd, const std::shared_ptr<Connection>& connection);
  void Read(Direction& direction, Connection& connection);
  void Flush(Direction& direction, Connection& connection);
  void ReadBoth(const std::shared_ptr<Connection>& connection);
  void FlushDue();
  void Arm();
  void Drop(const std::shared_ptr<Connection>& connection);

  const sockaddr_in to_;
  const absl::Duration delay_;
  int listener_ = -1;
  int epoll_ = -1;
  int timer_ = -1;
  std::unordered_map<int, std::shared_ptr<Connection>> connections_;  // each under both descriptors
  std::vector<char> scratch_ = std::vector<char>(kReadBytes);
};

absl::Status Relay::Listen(sockaddr_in address) {
  listener_ = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const int one = 1;
  setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  if (bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) return Errno("--listen");
  if (listen(listener_, 64) != 0) return Errno("listen");
  socklen_t length = sizeof(address);
  getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length);
  std::array<char, INET_ADDRSTRLEN> host{};
  inet_ntop(AF_INET, &address.sin_addr, host.data(), host.size());
  std::printf("listening on %s:%d\n", host.data(), ntohs(address.sin_port));
  std::fflush(stdout);
  return absl::OkStatus();
}

void Relay::Watch(int fd, const std::shared_ptr<Connection>& connection) {
  connections_[fd] = connection;
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  event.data.fd = fd;
  epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event);
}

void Relay::Accept() {
  for (;;) {
    const int client = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (client < 0) return;
    const int server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    const int result = connect(server, reinterpret_cast<const sockaddr*>(&to_), sizeof(to_));
    if (result != 0 && errno != EINPROGRESS) {
      close(client);
      close(server);
      continue;
    }
    SetNoDelay(client);
    SetNoDelay(server);
    auto connection = std::make_shared<Connection>();
    connection->directions[0].from = connection->directions[1].to = client;
    connection->directions[0].to = connection->directions[1].from = server;
    Watch(client, connection);
    Watch(server, connection);
  }
}

void Relay::Read(Direction& direction, Connection& connection) {
  while (!direction.ended && direction.held < kMaxHeldBytes) {
    const ssize_t count = recv(direction.from, scratch_.data(), scratch_.size(), 0);
    if (count > 0) {
      Direction::Chunk& chunk = direction.line.emplace_back();
      chunk.due = Clock::Steady().Now() + delay_;
      chunk.bytes.assign(scratch_.begin(), scratch_.begin() + count);
      direction.held += static_cast<size_t>(count);
    } else if (count == 0) {
      direction.ended = true;
    } else if (errno != EAGAIN && errno != EINTR && errno != ENOTCONN) {
      connection.broken = true;
      return;
    } else {
      return;
    }
  }
}

void Relay::Flush(Direction& direction, Connection& connection) {
  const absl::Time now = Clock::Steady().Now();
  direction.blocked = false;
  while (!direction.line.empty() && direction.line.front().due <= now) {
    Direction::Chunk& chunk = direction.line.front();
    const ssize_t count =
        send(direction.to, chunk.bytes.data() + chunk.sent, chunk.bytes.size() - chunk.sent, MSG_NOSIGNAL);
    if (count < 0) {
      direction.blocked = errno == EAGAIN || errno == EINTR || errno == ENOTCONN;
      connection.broken = connection.broken || !direction.blocked;
      return;
    }
    chunk.sent += static_cast<size_t>(count);
    direction.held -= static_cast<size_t>(count);
    if (chunk.sent == chunk.bytes.size()) direction.line.pop_front();
  }
  if (direction.ended && direction.line.empty() && !direction.closed) {
    direction.closed = true;
    shutdown(direction.to, SHUT_WR);
  }
}

void Relay::Drop(const std::shared_ptr<Connection>& connection) {
  for (const Direction& direction : connection->directions) {
    connections_.erase(direction.from);
    close(direction.from);
  }
}

void Relay::ReadBoth(const std::shared_ptr<Connection>& connection) {
  bool over = true;
  for (Direction& direction : connection->directions) {
    Flush(direction, *connection);
    Read(direction, *connection);
    over = over && direction.closed;
  }
  if (over || connection->broken) Drop(connection);
}

void Relay::FlushDue() {
  const absl::Time now = Clock::Steady().Now();
  std::vector<std::shared_ptr<Connection>> due;
  for (const auto& [fd, connection] : connections_) {
    for (const Direction& direction : connection->directions) {
      if (direction.from == fd && !direction.line.empty() && direction.line.front().due <= now &&
          !direction.blocked) {
        due.push_back(connection);
      }
    }
  }
  for (const auto& connection : due) {
    if (connections_.count(connection->directions[0].from) != 0) ReadBoth(connection);
  }
}

// Sets the timer to the earliest byte that is due and not held up by a full socket.
void Relay::Arm() {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [fd, connection] : connections_) {
    for (const Direction& direction : connection->directions) {
      if (!direction.line.empty() && !direction.blocked) next = std::min(next, direction.line.front().due);
    }
  }
  itimerspec when{};
  if (next != absl::InfiniteFuture()) {
    const absl::Duration wait = std::max(next - Clock::Steady().Now(), absl::Nanoseconds(1));
    when.it_value = absl::ToTimespec(wait);
  }
  timerfd_settime(timer_, 0, &when, nullptr);
}

absl::Status Relay::Run() {
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  timer_ = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  for (const int fd : {listener_, timer_}) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) != 0) return Errno("epoll");
  }
  std::array<epoll_event, 64> events{};
  for (;;) {
    const int count = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), -1);
    for (int i = 0; i < count; ++i) {
      const int fd = events[static_cast<size_t>(i)].data.fd;
      if (fd == listener_) {
        Accept();
      } else if (fd == timer_) {
        uint64_t expired = 0;
        if (read(timer_, &expired, sizeof(expired)) < 0 && errno != EAGAIN) return Errno("timer");
      } else if (const auto found = connections_.find(fd); found != connections_.end()) {
        ReadBoth(std::shared_ptr<Connection>(found->second));
      }
    }
    FlushDue();
    Arm();
  }
}

absl::Status Start(const std::string& listen, const std::string& to, absl::Duration delay) {
  ASSIGN_OR_RETURN(const sockaddr_in listen_address, Resolve(listen));
  ASSIGN_OR_RETURN(const sockaddr_in to_address, Resolve(to));
  prctl(PR_SET_TIMERSLACK, 1UL);  // or the kernel may wake it 50 us late
  Relay relay(to_address, delay);
  RETURN_IF_ERROR(relay.Listen(listen_address));
  return relay.Run();
}

int Main(int argc, char** argv) {
  std::string listen = "127.0.0.1:0", to;
  absl::Duration delay = absl::Milliseconds(10);
  OptionSet set(
      "delay_relay", "--to HOST:PORT [options]",
      "Passes TCP connections on and holds every byte for a fixed time in each direction, until it is "
      "ended by a signal.");
  set.AddString("listen", &listen, "HOST:PORT", "where to take connections; port 0: any free one");
  set.AddString("to", &to, "HOST:PORT", "where they go");
  set.AddDuration("delay", &delay, "how long each byte is held, in each direction");
  const auto outcome = set.Parse(std::vector<std::string>(argv + 1, argv + argc), nullptr);
  if (outcome.ok() && *outcome == OptionSet::Outcome::kHelpShown) return kExitOk;
  if (!outcome.ok() || to.empty()) {
    const std::string why =
        outcome.ok() ? "--to HOST:PORT is required" : std::string(outcome.status().message());
    std::fprintf(stderr, "delay_relay: %s\n", why.c_str());
    return kExitUsage;
  }
  const absl::Status status = Start(listen, to, delay);
  std::fprintf(stderr, "delay_relay: %s\n", status.ToString().c_str());
  return kExitFailure;
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  return millrace::bench::Main(argc, argv);
}
