// The threads of the shards of one stage.
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "worker/device/cpu/shard_barrier.h"

namespace millrace {

// Thread: one at a time; the caller of Run is shard 0, the others are the threads "shard-1", "shard-2", ...,
// which live as long as this.
class ShardTeam {
 public:
  explicit ShardTeam(uint32_t shards);  // at least 1
  ~ShardTeam();
  ShardTeam(const ShardTeam&) = delete;
  ShardTeam& operator=(const ShardTeam&) = delete;

  uint32_t size() const { return size_; }

  // Calls work(shard) in each shard's thread at the same time, and returns when all have returned.
  void Run(absl::FunctionRef<void(uint32_t)> work);

 private:
  void Serve(uint32_t shard);

  const uint32_t size_;
  ShardBarrier begin_;
  ShardBarrier end_;
  const absl::FunctionRef<void(uint32_t)>* work_ = nullptr;  // from begin_ to end_
  std::vector<std::thread> threads_;
};

}  // namespace millrace
