// Carries out what ClusterState decides: talks to workers, tells the engine when a ring is up or down.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <variant>

#include "absl/status/statusor.h"
#include "common/bounded_queue.h"
#include "common/health_state.h"
#include "common/transport/hop_listener.h"
#include "coordinator/cluster/cluster_state.h"
#include "coordinator/cluster/drain_state.h"
#include "coordinator/cluster/worker_session.h"
#include "coordinator/pipeline/engine.h"

namespace millrace {

// How a drain ended: whether nothing is left; UNAVAILABLE: the server stops. INVALID_ARGUMENT: no such stage.
using DrainDone = std::function<void(absl::StatusOr<bool>)>;

struct ClusterControllerOptions {
  ClusterOptions cluster;
  DrainOptions drain;
  std::string model_path;
  absl::Duration heartbeat = absl::Milliseconds(500);
  uint32_t max_rows = 0;
  uint32_t max_in_flight = 0;
  uint32_t block_tokens = 0;
  uint32_t context_tokens = 0;
  ModelSource* model_source = nullptr;  // outlives the controller; null: the model is not sent to workers
  HealthState* health = nullptr;        // outlives the controller; null: nobody asks whether the loop turns
  // Told of every change of state. Thread: cluster.
  std::function<void(PipelineState)> on_state;
};

// Thread: cluster (started by Start) owns the state; public calls are safe from any thread.
class ClusterController {
 public:
  // `engine` and `listener` outlive this.
  ClusterController(ClusterControllerOptions options, Engine* engine, HopListener* listener);
  ~ClusterController();

  grpc::Service* service() { return &service_; }
  void Start();
  // Tells the workers to end, waits up to `grace` until they have left, and ends the thread.
  void Stop(const std::string& reason, absl::Duration grace);
  void ReportRingFault(Epoch epoch, absl::Status why);

  // Waits until the worker of `stage` may go, or, without a stage, until ReportAllIdle; at most `wait`.
  // `done` is called once, on the cluster thread or on this one; it must not wait.
  void Drain(std::optional<uint32_t> stage, absl::Duration wait, DrainDone done);
  // As DrainState::OnAllIdle and OnQuiet. Never waits.
  void ReportAllIdle();
  void ReportQuiet(uint64_t hold);

 private:
  struct WorkerSaid {
    std::shared_ptr<WorkerSession> session;
    v1::WorkerMessage message;
  };
  struct WorkerGone {
    WorkerId worker;
  };
  struct RingFault {
    Epoch epoch;
    absl::Status why;
  };
  struct StopAsked {
    std::string reason;
    absl::Time until;
  };
  struct DrainAsked {
    std::optional<uint32_t> stage;
    absl::Duration wait;
    DrainDone done;
  };
  struct AllIdle {};
  struct RingQuiet {
    uint64_t hold = 0;
  };
  using Event = std::variant<WorkerSaid, WorkerGone, RingFault, StopAsked, DrainAsked, AllIdle, RingQuiet>;

  void RunLoop();
  absl::Duration WaitTime() const;
  void Handle(Event event);
  void HandleMessage(const std::shared_ptr<WorkerSession>& session, const v1::WorkerMessage& message);
  void HandleHello(const std::shared_ptr<WorkerSession>& session, const v1::Hello& hello);
  void BeginStop(const StopAsked& stop);
  void BeginDrain(DrainAsked asked);
  void StepDrain(absl::Time now);
  void AnswerDrains();
  void EndDrains();
  void CarryOut(const ClusterAction& action);
  void Welcome(WorkerId worker);
  void Measure(const MeasureWorker& action);
  void LogForecast() const;
  void OpenHops(Epoch epoch);
  void Assign(const AssignStage& action);
  void RaiseRing(const RingUp& action);
  void ShareClock(WorkerId worker);
  void Send(WorkerId worker, v1::CoordinatorMessage message);
  void PublishState();

  const ClusterControllerOptions options_;
  Engine* const engine_;
  HopListener* const listener_;
  BoundedQueue<Event> events_;
  ClusterService service_;
  std::thread thread_;

  // Thread: cluster.
  ClusterState state_;
  DrainState drain_;
  uint64_t last_drain_ = 0;
  std::map<uint64_t, DrainDone> drains_;  // that are not answered
  std::map<WorkerId, std::shared_ptr<WorkerSession>> sessions_;
  Epoch ring_epoch_;
  std::vector<WorkerId> ring_workers_;  // by stage; empty without a ring
  std::optional<absl::Time> stop_until_;
  std::string published_detail_;
  PipelineState published_state_ = PipelineState::kStopping;
};

}  // namespace millrace
