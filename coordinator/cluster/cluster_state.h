// Who is in the cluster and which stage each worker holds: a state machine without I/O, clock or threads.
// Events go in as calls; what is to be done comes out as actions.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "common/numeric_choice.h"
#include "common/worker_profile.h"
#include "coordinator/pipeline/engine_port.h"
#include "coordinator/planner/model_shape.h"
#include "coordinator/planner/placement.h"
#include "coordinator/planner/stage_placement.h"
#include "coordinator/scheduler/stage_cost.h"

namespace millrace {

struct ClusterOptions {
  std::string version;
  std::string secret;
  std::string model_fingerprint;
  std::vector<LayerRange> placement;  // one range per stage: the user's, or by shape
  // Of the model: layers are placed by what the workers measured. Null: as in `placement`.
  std::shared_ptr<const ModelShape> shape;
  bool placement_is_fixed = false;  // `placement` is the user's; with a shape it is rated all the same
  NumericChoice numeric;            // that all stages compute with
  uint32_t max_rows = 0;            // of a microbatch, and context: for what a stage needs of memory
  uint32_t context_tokens = 0;
  Workload workload;                                 // the stages are to be equal for
  absl::Duration worker_timeout = absl::Seconds(3);  // silence after which a worker counts as lost
  // The coordinator's own, as in WorkerHello.
  std::string unix_address;
  std::string host_identity;
};

// What a worker said of itself when it joined.
struct WorkerHello {
  std::string version;
  std::string secret;
  std::string ring_address;
  std::string model_fingerprint;  // empty: it takes the coordinator's path and checks for itself
  std::optional<uint32_t> stage;
  std::string numeric_class;
  std::string host;
  bool measures = false;           // answers MeasureWorker with OnProfile
  uint64_t memory_bytes = 0;       // for weights, KV cache and activations; 0: not said
  uint64_t kv_memory_bytes = 0;    // of which for KV cache; 0: not said
  uint32_t threads = 1;            // 0: as many as its share of the cores
  std::string unix_address = {};   // where processes of the same host reach it, too; empty: nowhere
  std::string host_identity = {};  // equal: the same host; empty: not known
  std::vector<ActivationType> activation_types = {ActivationType::kF32};     // it can compute with
  std::vector<KvType> kv_types = {KvType::kF32, KvType::kF16, KvType::kI8};  // it can keep
  std::string machine = {};  // equal: one machine; empty: not known
  std::string cores = {};    // that it may use there
  std::string kernels = {};  // for people
};

struct WorkerLoaded {
  Epoch epoch;
  std::string model_fingerprint;
  uint64_t weight_bytes = 0;
  uint64_t activation_bytes = 0;
  uint32_t kv_blocks = 0;
  uint64_t kv_bytes_per_block = 0;
  uint32_t threads = 0;                  // that share each op
  std::vector<ShardMemory> shards = {};  // kv_bytes of one block
};

// Of `count` workers with a stage that may use the same cores of one machine, number `index`.
struct CoreShare {
  uint32_t index = 0;
  uint32_t count = 1;
};

// Actions.
struct WelcomeWorker {
  WorkerId worker;
};
struct RefuseWorker {  // ends its control stream
  WorkerId worker;
  absl::Status why;
};
struct MeasureWorker {
  WorkerId worker;
  CoreShare cores;
  bool brief = false;  // nothing is placed by it
};
struct BeginEpoch {  // hops of this epoch may come from now on
  Epoch epoch;
};
struct AssignStage {
  WorkerId worker;
  Epoch epoch;
  uint32_t stage = 0;
  LayerRange layers;
  std::string next_address;       // empty: the coordinator
  std::string next_unix_address;  // empty: not on the same host
  CoreShare cores;
};
struct ActivateStage {
  WorkerId worker;
  Epoch epoch;
  uint32_t kv_blocks = 0;
};
struct RingUp {
  Epoch epoch;
  std::vector<WorkerId> workers;  // by stage
  std::vector<StageSnapshot> stages;
  uint32_t kv_blocks = 0;
  std::vector<StageCost> stage_costs;  // by stage, as measured; empty: not all were
};
struct RingDown {
  Epoch epoch;
  absl::Status why;
};
using ClusterAction = std::variant<WelcomeWorker, RefuseWorker, MeasureWorker, BeginEpoch, AssignStage,
                                   ActivateStage, RingUp, RingDown>;

// Thread: cluster.
//
// Phases: kWaiting (a stage has no worker, or one has not measured yet, or the model does not fit) ->
// kLoading (assigned; not all have loaded) -> kActivating (not all are ready) -> kServing. Losing a worker
// leads back to kWaiting from anywhere; a failed epoch leads to kPausing and then kLoading of the next one,
// after a pause that grows while epochs keep failing. A worker beyond the number of stages waits as a spare.
//
// When a worker dies, its neighbour often notices the broken hop before its control stream ends. So a stage
// that fails while serving is only suspected at first: if a worker is lost meanwhile, that is the reason
// given.
class ClusterState {
 public:
  explicit ClusterState(ClusterOptions options);

  void OnHello(WorkerId worker, WorkerHello hello, absl::Time now);
  // INVALID_ARGUMENT, and the worker is refused: a profile that was not asked for, or fails CheckProfile.
  void OnProfile(WorkerId worker, WorkerProfile profile, absl::Time now);
  void OnHeard(WorkerId worker, absl::Time now);  // any message: it is alive
  void OnProgress(WorkerId worker, uint64_t done, uint64_t total);
  void OnLoaded(WorkerId worker, const WorkerLoaded& loaded, absl::Time now);
  void OnReady(WorkerId worker, Epoch epoch, const std::string& hop);
  void OnAssignFailed(WorkerId worker, Epoch epoch, const std::string& why, absl::Time now);
  void OnStageFailed(WorkerId worker, Epoch epoch, const std::string& why, absl::Time now);
  void OnRingFault(Epoch epoch, const std::string& why, absl::Time now);  // the engine gave the ring up
  void OnGone(WorkerId worker, const std::string& how, absl::Time now);
  void Tick(absl::Time now);    // silence, and the pause after a failed epoch
  absl::Time NextTick() const;  // InfiniteFuture if there is nothing to wait for

  std::vector<ClusterAction> TakeActions();

  PipelineState state() const;
  std::string Detail() const;  // for people: what is waited for
  // Who is there, and how the layers lie. What the options say of the ring is left to the caller.
  ClusterSnapshot Snapshot() const;
  bool Has(WorkerId worker) const { return workers_.count(worker) > 0; }
  // Not valid: the stage has none. REQUIRES: stage < num_stages().
  WorkerId WorkerOf(uint32_t stage) const { return stages_[stage]; }
  uint32_t num_stages() const { return static_cast<uint32_t>(options_.placement.size()); }
  const std::optional<StagePlacement>& forecast() const { return forecast_; }

 private:
  enum class Phase { kWaiting, kPausing, kLoading, kActivating, kServing };
  struct Worker {
    WorkerHello hello;
    absl::Time last_heard;
    std::optional<uint32_t> stage;
    bool measure_asked = false;
    std::optional<WorkerProfile> profile;  // checked
    std::optional<WorkerLoaded> loaded;    // in the current epoch
    bool ready = false;                    // in the current epoch
    std::string hop;                       // by what its output travels
    uint64_t bytes_done = 0;
    uint64_t bytes_total = 0;
  };

  absl::Status CheckHello(const WorkerHello& hello) const;
  absl::Status CheckNumeric(const WorkerHello& hello) const;
  absl::Status CheckKvType(const WorkerHello& hello) const;
  std::optional<uint32_t> FreeStage() const;
  void FillStages(absl::Time now);
  bool AllMeasured();
  void BeginIfReady(absl::Time now);
  bool Place();
  void StartEpoch();
  std::vector<StageCost> StageCosts() const;
  void Suspect(const absl::Status& why, absl::Time now);
  void ActivateIfLoaded();
  void FailEpoch(const absl::Status& why, absl::Time now);
  void LoseWorker(WorkerId id, const std::string& how, absl::Time now);
  bool InEpoch(WorkerId worker, Epoch epoch) const;
  std::string Describe(WorkerId id) const;
  StageSnapshot StageOf(WorkerId id) const;
  std::string NextUnixAddress(uint32_t stage) const;
  CoreShare CoresOf(uint32_t stage) const;

  const ClusterOptions options_;
  Phase phase_ = Phase::kWaiting;
  uint64_t epoch_ = 0;
  uint32_t kv_blocks_ = 0;
  int failed_in_a_row_ = 0;
  absl::Time resume_at_ = absl::InfiniteFuture();
  std::string last_failure_;
  std::string last_refusal_;                // of a worker that cannot compute with what the others do
  std::string misfit_;                      // why the model does not fit on these workers; empty: it does
  std::vector<LayerRange> ranges_;          // by stage
  std::vector<WorkerId> placed_;            // by stage, when ranges_ were chosen; empty: never
  std::optional<StagePlacement> forecast_;  // of ranges_; absent: not rated
  absl::Status suspicion_;                  // not OK: why the epoch will be failed at suspicion_ends_
  absl::Time suspicion_ends_ = absl::InfiniteFuture();
  std::map<WorkerId, Worker> workers_;
  std::vector<WorkerId> stages_;  // by stage; invalid: free
  std::vector<ClusterAction> actions_;
};

}  // namespace millrace
