// The coordinator's side of one worker's control stream, and the service that accepts them.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "common/clock_offset.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "coordinator/cluster/model_source.h"
#include "grpcpp/grpcpp.h"
#include "millrace/v1/cluster.grpc.pb.h"

namespace millrace {

class WorkerSession;

// Where sessions report. Thread: grpc.
struct WorkerSessionEvents {
  std::function<void(std::shared_ptr<WorkerSession>, v1::WorkerMessage)> on_message;
  std::function<void(WorkerId)> on_gone;  // once, last
};

// Thread: any. Keeps itself alive until gRPC is done with the stream.
class WorkerSession final : public grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage> {
 public:
  static std::shared_ptr<WorkerSession> Begin(WorkerId id, std::shared_ptr<const WorkerSessionEvents> events);

  WorkerId id() const { return id_; }

  // Never waits. False when the stream is over, or the worker is so far behind that it must be given up.
  bool Send(v1::CoordinatorMessage message);

  // The worker's clock minus this process's; empty until it is known.
  std::optional<absl::Duration> clock_offset() const;

  // Ends the stream with a status, after what was sent.
  void End(const absl::Status& status);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  WorkerSession(WorkerId id, std::shared_ptr<const WorkerSessionEvents> events);
  void CompareClocks(const v1::Heartbeat& heartbeat, int64_t received_ns);
  void FinishIfDrained() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const WorkerId id_;
  const std::shared_ptr<const WorkerSessionEvents> events_;
  v1::WorkerMessage incoming_;
  std::shared_ptr<WorkerSession> self_;  // until OnDone
  mutable Mutex mutex_;
  ClockOffsetEstimator clock_ ABSL_GUARDED_BY(mutex_);
  ClockExchange exchange_ ABSL_GUARDED_BY(mutex_);  // the last, without the worker's half of its end
  std::deque<v1::CoordinatorMessage> queue_ ABSL_GUARDED_BY(mutex_);
  bool welcomed_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::Status end_status_ ABSL_GUARDED_BY(mutex_);
};

class ClusterService final : public v1::Cluster::CallbackService {
 public:
  // `model` outlives this; null: the model is not sent.
  ClusterService(WorkerSessionEvents events, ModelSource* model);
  grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>* Join(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* GetModelManifest(grpc::CallbackServerContext* context,
                                             const v1::ModelManifestRequest* request,
                                             v1::ModelManifest* answer) override;
  grpc::ServerWriteReactor<v1::ModelChunk>* FetchModel(grpc::CallbackServerContext* context,
                                                       const v1::FetchModelRequest* request) override;

 private:
  const std::shared_ptr<const WorkerSessionEvents> events_;
  ModelSource* const model_;
  std::atomic<uint64_t> next_id_{1};
};

}  // namespace millrace
