// The engine as the frontend sees it, and the frontend as the engine sees it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/histogram.h"
#include "common/ids.h"
#include "common/kv_type.h"
#include "common/worker_profile.h"
#include "coordinator/pipeline/bubble_meter.h"
#include "coordinator/scheduler/microbatch_plan.h"
#include "coordinator/scheduler/scheduler.h"

namespace millrace {

// Where the engine puts what happened. Thread: engine.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  // While false the engine plans no microbatch: the text thread is behind.
  virtual bool HasRoom() const = 0;
  // Takes the actions, in order; never waits. What is in flight when HasRoom turns false still arrives here.
  virtual void OnActions(std::vector<SchedulerAction> actions) = 0;
};

enum class PipelineState { kWaitingForWorkers, kLoading, kServing, kStopping };

// What one tensor-parallel shard of a stage holds.
struct ShardMemory {
  uint64_t weight_bytes = 0;
  uint64_t kv_bytes = 0;
  uint64_t activation_bytes = 0;
};

struct StageSnapshot {
  std::string worker;
  uint32_t first_layer = 0;
  uint32_t num_layers = 0;
  uint64_t weight_bytes = 0;
  uint64_t kv_bytes = 0;
  uint64_t activation_bytes = 0;
  std::vector<ShardMemory> shards;  // part of the bytes above
  std::string numeric_class;
  std::string kernels;                 // for people: the backend and its instruction set
  uint32_t threads = 0;                // that share each op
  std::string hop;                     // by what its output travels: "tcp" or "unix"
  absl::Duration clock_offset;         // the worker's clock minus the coordinator's; 0 until it is known
  StageUse total;                      // since the epoch began
  StageUse window;                     // of the last seconds, BubbleMeter::kWindow
  uint64_t activation_bytes_sent = 0;  // to the next stage, since the epoch began
  double predicted_seconds = 0;        // of the microbatch that placements are compared by; 0: not measured
};

struct WorkerSnapshot {
  WorkerId id;
  std::string address;
  std::string host;
  std::string numeric_class;
  uint64_t memory_bytes = 0;
  uint64_t kv_memory_bytes = 0;
  uint32_t threads = 0;                  // that share each op; 0: not decided yet
  std::optional<uint32_t> stage;         // absent: a spare
  std::optional<WorkerProfile> profile;  // absent: not measured
};

// Who is in the cluster, and what was agreed on with them.
struct ClusterSnapshot {
  std::vector<WorkerSnapshot> workers;
  std::vector<uint32_t> layers;    // by stage
  double predicted_imbalance = 0;  // slowest stage over mean stage; 0: not rated
  double imbalance_bound = 0;      // the same of the best cut by whole layers
  uint32_t max_rows = 0;
  uint32_t max_in_flight = 0;
  uint32_t block_tokens = 0;
  uint32_t context_tokens = 0;
  KvType kv_type = KvType::kF32;
};

struct PipelineSnapshot {
  PipelineState state = PipelineState::kWaitingForWorkers;
  std::string detail;  // for people: what is waited for
  uint64_t epoch = 0;
  bool proven = false;         // a token has gone round this epoch's ring
  bool holding = false;        // what has not begun is held for the next ring
  absl::Duration active;       // time of this epoch with a microbatch in flight
  absl::Duration mean_hop;     // of a microbatch, smoothed
  Histogram hops{kHopBounds};  // seconds, one entry a microbatch, since the epoch began
  SchedulerLoad load;
  absl::Duration retry_after;  // for who finds the queue full
  std::vector<StageSnapshot> stages;
};

// All stages together: of `total` or of `window`.
inline StageUse PipelineUse(const PipelineSnapshot& pipeline, StageUse StageSnapshot::*which) {
  StageUse sum;
  for (const StageSnapshot& stage : pipeline.stages) sum += stage.*which;
  return sum;
}

// Follows the microbatches of a ring. Thread: engine. Must not wait.
class MicrobatchObserver {
 public:
  virtual ~MicrobatchObserver() = default;
  virtual void OnMicrobatch(Epoch epoch, const MicrobatchAccount& account) = 0;
};

// Thread: any. Nothing here waits for the pipeline.
class EnginePort {
 public:
  virtual ~EnginePort() = default;
  // Hands a request over. OK: it will end in exactly one SequenceFinished. RESOURCE_EXHAUSTED: too many live
  // requests. UNAVAILABLE: stopping.
  virtual absl::Status Submit(SequenceRequest request) = 0;
  // As Scheduler::Cancel and Scheduler::StopAt. For ids whose Submit returned OK; at most once each.
  virtual void Cancel(SequenceId id, absl::Status why) = 0;
  virtual void StopAt(SequenceId id, uint32_t output_tokens) = 0;
  virtual PipelineSnapshot Snapshot() const = 0;
  virtual ClusterSnapshot Cluster() const = 0;
  // From now on the observer is told of every microbatch that comes back, for as long as somebody else keeps
  // it.
  virtual void Observe(std::weak_ptr<MicrobatchObserver> observer) = 0;
};

}  // namespace millrace
