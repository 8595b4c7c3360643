// Loading: packs the weights of a stage's shards, or reads those that stay as they are in the file.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "model/gguf_file.h"
#include "worker/device/device.h"
#include "worker/stage/stage_weights.h"

namespace millrace {

struct ShardToLoad {
  Device* device = nullptr;
  StageWeights* weights = nullptr;   // of ViewStageWeights
  DeviceMemory* packed = nullptr;    // gets what is packed
  uint64_t* mapped_bytes = nullptr;  // gets the bytes of the file that stay in use
};

// One loading of one stage. What it points to outlives it.
class WeightLoader {
 public:
  // `progress(done, total)` is called with bytes of the file, in the thread that loads shard 0, about every
  // 16 MiB and at the end; may be empty.
  WeightLoader(const GgufFile& file, std::vector<ShardToLoad> shards,
               std::function<void(uint64_t, uint64_t)> progress);

  // Memory for what will be packed. RESOURCE_EXHAUSTED: all shards together take more than is free. Thread:
  // any.
  absl::Status Allocate();

  // Loads a shard. Errors of Device::Finish. Thread: the shard's; all shards may load at the same time.
  // REQUIRES: Allocate was OK.
  absl::Status Load(size_t shard);

  // Gives back the file's pages that nobody reads any more, and says that all is done. Thread: as that of
  // shard 0, after all Loads.
  void Finish();

 private:
  struct Item {
    kernels::WeightMatrix* matrix = nullptr;
    uint64_t packed_bytes = 0;  // 0: stays in the file
    uint64_t offset = 0;        // in the packed memory
  };
  void ListItems(size_t shard);
  void Done(size_t shard, uint64_t bytes);

  const GgufFile& file_;
  const std::vector<ShardToLoad> shards_;
  const std::function<void(uint64_t, uint64_t)> progress_;
  std::vector<std::vector<Item>> items_;             // by shard
  std::vector<kernels::WeightMatrix> packed_views_;  // of the file, as they were before
  uint64_t total_ = 0;
  std::atomic<uint64_t> done_{0};
  uint64_t reported_ = 0;
};

}  // namespace millrace
