// A coordinator's and its workers' parts in one process, joined by gRPC over the loopback interface.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "common/bounded_queue.h"
#include "coordinator/cluster/cluster_controller.h"
#include "coordinator/pipeline/engine.h"
#include "grpcpp/grpcpp.h"
#include "tests/integration/in_memory_ring.h"
#include "worker/control/backend_choice.h"
#include "worker/control/coordinator_session.h"
#include "worker/control/stage_host.h"

namespace millrace::testing {

inline constexpr absl::Duration kPatience = absl::Seconds(120);
inline constexpr char kClusterSecret[] = "s3cret";
inline constexpr char kClusterVersion[] = "test";

// Collects what the engine says of each sequence.
class OutcomeSink final : public TokenSink {
 public:
  bool HasRoom() const override { return true; }
  void OnActions(std::vector<SchedulerAction> actions) override;

  // Waits for a sequence's first token, or for its end.
  bool AwaitToken(SequenceId id);
  // Waits for a sequence's end.
  std::optional<SequenceOutcome> AwaitEnd(SequenceId id);

 private:
  Mutex mutex_;
  CondVar changed_;
  Outcomes outcomes_ ABSL_GUARDED_BY(mutex_);
  std::map<SequenceId, bool> ended_ ABSL_GUARDED_BY(mutex_);
};

// Cluster controller, engine and hop listener behind a server.
class TestCoordinator {
 public:
  struct Options {
    std::vector<uint32_t> layers;  // of each stage
    std::string model_path;
    std::string fingerprint;
    uint32_t context_tokens = 512;
    absl::Duration worker_timeout = absl::Hours(1);
    NumericChoice numeric;
  };
  explicit TestCoordinator(const Options& options);
  ~TestCoordinator();

  const std::string& address() const { return address_; }
  Engine& engine() { return *engine_; }
  OutcomeSink& sink() { return sink_; }
  ClusterController& controller() { return *controller_; }
  // Waits until the cluster says so; states before it are skipped.
  bool AwaitState(PipelineState state);

 private:
  OutcomeSink sink_;
  BoundedQueue<PipelineState> states_{1000};
  HopListener listener_{kClusterSecret};
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<ClusterController> controller_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

v1::WorkerMessage MakeHello(const std::string& fingerprint);

// A worker without a process: a control stream, a server for hops and a stage.
class TestWorker {
 public:
  struct Options {
    std::string coordinator;
    std::string model_path;
    std::optional<uint32_t> stage;
    uint64_t kv_memory_bytes = uint64_t{1} << 22;
    StageBackendOptions backends;
    StageComputeFactory make_stage;  // empty: StageModel::Create
    // By Unix sockets too; kUnreachable: an address at which nobody listens.
    enum class Local { kNo, kYes, kUnreachable } local = Local::kNo;
    absl::Duration clock_ahead;  // of its heartbeats, before the real one
  };
  explicit TestWorker(const Options& options);
  ~TestWorker();

  // Ends the control stream as a dying process would, without a goodbye.
  void Vanish();
  // Waits for the end of the control stream.
  std::optional<absl::Status> AwaitClosed() { return closed_.Pop(kPatience); }
  // The epochs of the stages it was given, in order.
  std::optional<uint64_t> NextAssigned() { return assigned_.Pop(kPatience); }
  // Sends a heartbeat and waits for its answer.
  bool ExchangeClocks();
  std::optional<std::string> NextShutdown() { return shutdowns_.Pop(kPatience); }

 private:
  void Listen();
  void OnMessage(v1::CoordinatorMessage message);
  void Control();
  void Handle(const v1::CoordinatorMessage& message);
  void SendStageFailed(Epoch epoch, const absl::Status& why);

  const Options options_;
  BoundedQueue<v1::CoordinatorMessage> events_{100};
  int64_t ClockNanos() const;

  BoundedQueue<std::pair<int64_t, int64_t>> clock_answers_{100};  // sent, answered
  std::pair<int64_t, int64_t> last_answer_;
  BoundedQueue<absl::Status> closed_{1};
  BoundedQueue<uint64_t> assigned_{1000};
  BoundedQueue<std::string> shutdowns_{10};
  HopListener listener_{kClusterSecret};
  EpochRouter router_;
  std::unique_ptr<StageHost> host_;
  std::unique_ptr<grpc::Server> server_;
  std::string ring_address_;
  std::unique_ptr<CoordinatorSession> session_;
  std::thread control_;
};

}  // namespace millrace::testing
