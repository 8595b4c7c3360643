#include "bench/transport/raw_echo.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "common/check.h"

namespace millrace::bench {
namespace {

struct Command {
  uint64_t bytes = 0;
  uint32_t count = 0;
  uint32_t echo = 0;
};

void WriteAll(int fd, const void* data, size_t size) {
  const char* from = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t done = send(fd, from, size, MSG_NOSIGNAL);
    MILLRACE_CHECK(done > 0);
    from += done;
    size -= static_cast<size_t>(done);
  }
}

// False at the end of the stream.
bool ReadAll(int fd, void* data, size_t size) {
  char* to = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t done = recv(fd, to, size, 0);
    MILLRACE_CHECK(done >= 0);
    if (done == 0) return false;
    to += done;
    size -= static_cast<size_t>(done);
  }
  return true;
}

void NoDelay(int fd) {
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));  // means nothing to a Unix socket
}

socklen_t AbstractAddress(const std::string& name, sockaddr_un* address) {
  *address = {};
  address->sun_family = AF_UNIX;
  std::memcpy(address->sun_path + 1, name.data(), name.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

RawServer::RawServer(bool use_tcp) {
  fd_ = socket(use_tcp ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  MILLRACE_CHECK(fd_ >= 0);
  if (use_tcp) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    MILLRACE_CHECK(bind(fd_, reinterpret_cast<sockaddr*>(&address), size) == 0);
    MILLRACE_CHECK(getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size) == 0);
    address_ = "tcp:" + std::to_string(ntohs(address.sin_port));
  } else {
    const std::string name = "millrace-raw-echo-" + std::to_string(getpid());
    sockaddr_un address;
    const socklen_t size = AbstractAddress(name, &address);
    MILLRACE_CHECK(bind(fd_, reinterpret_cast<sockaddr*>(&address), size) == 0);
    address_ = "unix:" + name;
  }
  MILLRACE_CHECK(listen(fd_, 1) == 0);
}

void RawServer::ServeOne() {
  const int fd = accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC);
  MILLRACE_CHECK(fd >= 0);
  NoDelay(fd);
  std::vector<char> buffer;
  Command command;
  while (ReadAll(fd, &command, sizeof(command))) {
    buffer.resize(command.bytes);
    for (uint32_t i = 0; i < command.count; ++i) {
      if (!ReadAll(fd, buffer.data(), buffer.size())) break;
      if (command.echo != 0) WriteAll(fd, buffer.data(), buffer.size());
    }
    if (command.echo == 0) WriteAll(fd, buffer.data(), 1);
  }
  close(fd);
}

RawClient::RawClient(const std::string& address) {
  const bool use_tcp = address.rfind("tcp:", 0) == 0;
  fd_ = socket(use_tcp ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  MILLRACE_CHECK(fd_ >= 0);
  if (use_tcp) {
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(static_cast<uint16_t>(std::atoi(address.c_str() + 4)));
    MILLRACE_CHECK(connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0);
  } else {
    sockaddr_un to;
    const socklen_t size = AbstractAddress(address.substr(5), &to);
    MILLRACE_CHECK(connect(fd_, reinterpret_cast<sockaddr*>(&to), size) == 0);
  }
  NoDelay(fd_);
}

RawClient::~RawClient() {
  close(fd_);
}

double RawClient::Echo(size_t bytes, uint32_t count) {
  std::vector<char> buffer(bytes, 'e');
  const Command command{bytes, count, 1};
  WriteAll(fd_, &command, sizeof(command));
  const double begin = Now();
  for (uint32_t i = 0; i < count; ++i) {
    WriteAll(fd_, buffer.data(), bytes);
    MILLRACE_CHECK(ReadAll(fd_, buffer.data(), bytes));
  }
  return Now() - begin;
}

double RawClient::OneWay(size_t bytes, uint32_t count) {
  std::vector<char> buffer(bytes, 'o');
  const Command command{bytes, count, 0};
  const double begin = Now();
  WriteAll(fd_, &command, sizeof(command));
  for (uint32_t i = 0; i < count; ++i) WriteAll(fd_, buffer.data(), bytes);
  MILLRACE_CHECK(ReadAll(fd_, buffer.data(), 1));
  return Now() - begin;
}

}  // namespace millrace::bench
