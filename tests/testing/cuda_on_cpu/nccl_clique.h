// The ranks that belong together, and how their work meets. Private to the stand-in for NCCL.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace cuda_on_cpu::internal {

[[noreturn]] void NcclMisuse(const std::string& what);

struct NcclOp {
  enum class Kind { kSend, kReceive, kAllGather, kAllReduce };
  Kind kind;
  const void* from = nullptr;
  void* to = nullptr;
  size_t count = 0;  // floats; of one rank
  int peer = 0;
  cudaStream_t stream = nullptr;
};

// Thread: any. All waits end when the waiting rank is aborted.
class NcclClique {
 public:
  explicit NcclClique(int size) : size_(size), devices_(size, -1), aborted_(size), next_collective_(size) {}
  int size() const { return size_; }

  // False: the rank, or the device, has joined already.
  bool Join(int rank, int device);
  bool complete();

  // Does one fused group of ops. REQUIRES: called by one thread at a time for each rank.
  void Run(int rank, const std::vector<NcclOp>& ops);
  // Until `hangs` returns false or the rank is aborted.
  void WaitWhile(int rank, bool (*hangs)(int rank));
  void Abort(int rank);
  bool aborted(int rank) const { return aborted_[rank]; }

 private:
  struct Message {
    const void* from;
    size_t count;
    bool taken = false;
  };
  struct Collective {
    std::vector<const NcclOp*> ops;
    int arrived = 0;
    int left = 0;
    bool broken = false;  // a rank was aborted
    std::vector<float> sum;
  };
  using Lock = std::unique_lock<std::mutex>;
  bool Receive(Lock& lock, int rank, const NcclOp& op);
  bool Meet(Lock& lock, int rank, const NcclOp& op);
  void Finish(int rank, const NcclOp& op, const Collective& all) const;
  void AddAll(Collective& all) const;

  const int size_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int> devices_;
  std::vector<std::atomic<bool>> aborted_;
  std::vector<uint64_t> next_collective_;
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<Message>>> messages_;  // from, to
  std::map<uint64_t, Collective> collectives_;
};

}  // namespace cuda_on_cpu::internal
