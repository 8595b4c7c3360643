// What a worker says of itself when it joins.
#pragma once

#include <string>

#include "millrace/v1/cluster.pb.h"
#include "worker/control/worker.h"

namespace millrace {

// What the options do not say.
struct HelloFacts {
  std::string secret;
  std::string ring_address;       // host:port for other workers
  std::string unix_address;       // empty: hops by TCP only
  std::string model_fingerprint;  // empty: no model yet
  std::string kernels;            // for people: the instruction set
};

// `options` are settled: threads and backends are what the worker computes with. Thread: any.
v1::Hello MakeHello(const WorkerOptions& options, const HelloFacts& facts);

}  // namespace millrace
