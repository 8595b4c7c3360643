// The same bytes over plain sockets, to compare hops with: blocking reads and writes, no framing.
#pragma once

#include <cstdint>
#include <string>

namespace millrace::bench {

// "tcp:PORT" on 127.0.0.1, or "unix:NAME" in the abstract name space. Aborts on errors.
class RawServer {
 public:
  explicit RawServer(bool use_tcp);
  const std::string& address() const { return address_; }
  // Serves one connection until it ends: commands, each of which names a size and a number of messages, that
  // are echoed one by one or swallowed with one byte as the answer.
  void ServeOne();

 private:
  int fd_ = -1;
  std::string address_;
};

class RawClient {
 public:
  explicit RawClient(const std::string& address);
  ~RawClient();
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  // Seconds for `count` round trips, or for as many messages one way and one byte back.
  double Echo(size_t bytes, uint32_t count);
  double OneWay(size_t bytes, uint32_t count);

 private:
  int fd_ = -1;
};

}  // namespace millrace::bench
