// Streams, events and graphs of the stand-in.
#pragma once

#include <cuda_runtime_api.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "random.h"

using StreamWork = std::function<void()>;

struct CUgraph_st {
  std::vector<StreamWork> nodes;  // in the order of capture, which satisfies every dependence
};

struct CUgraphExec_st {
  std::shared_ptr<const std::vector<StreamWork>> nodes;
};

namespace cuda_on_cpu::internal {

struct Capture {
  std::thread::id owner;
  cudaStream_t origin = nullptr;
  std::unique_ptr<CUgraph_st> graph;
  bool thread_local_mode = true;
  bool invalid = false;
  std::set<cudaStream_t> unjoined;  // streams that have work the origin has not waited for
};

// The times at which an event was recorded; lives on with what waits for it.
struct EventTimes {
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t recorded = 0;   // how often a record was enqueued
  uint64_t completed = 0;  // the latest of those that was reached
  double seconds = 0;      // when
};

}  // namespace cuda_on_cpu::internal

struct CUevent_st {
  int device = 0;
  bool timed = true;
  std::shared_ptr<cuda_on_cpu::internal::EventTimes> times =
      std::make_shared<cuda_on_cpu::internal::EventTimes>();
  std::shared_ptr<cuda_on_cpu::internal::Capture> captured_in;  // where the last record was captured
  cudaStream_t captured_on = nullptr;
};

struct CUstream_st {
  CUstream_st(int device, uint64_t seed);
  // Waits for the work, unless the device's work hangs.
  ~CUstream_st();

  void Add(StreamWork work);
  void WaitUntilIdle();
  bool Idle();

  const int device;
  std::shared_ptr<cuda_on_cpu::internal::Capture> capture;  // guarded by the API's mutex

 private:
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<StreamWork> work;
    bool busy = false;
    bool closing = false;
  };
  static void Main(std::shared_ptr<Shared> shared, cuda_on_cpu::internal::Random random);

  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
  std::thread thread_;
};

namespace cuda_on_cpu::internal {

// Waits for all streams of the device.
void WaitForDevice(int device);
// The calling thread's captures are spoilt by a call that captures forbid; whether there were any.
bool SpoilCaptures();
// What was put on a stream goes to its thread, or into its capture.
cudaError_t Enqueue(cudaStream_t stream, StreamWork work);
int Streams();
int Events();
int Graphs();

}  // namespace cuda_on_cpu::internal
