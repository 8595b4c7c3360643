// One Control.Trace call: microbatches as they come back, for a while.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "coordinator/pipeline/engine_port.h"
#include "millrace/v1/control.pb.h"

namespace millrace {

struct TraceStreamOptions {
  absl::Time now;  // on the engine's clock: the origin of the times sent
  absl::Duration length;
  // Microbatches that wait while the client does not read; what comes beyond is counted and dropped.
  size_t max_waiting = 4096;
  // Counted while the call runs. Not null.
  std::shared_ptr<std::atomic<int>> running;
};

// The engine calls OnMicrobatch, gRPC everything else. One write is outstanding at a time; what comes
// meanwhile goes into the next. The object owns itself until gRPC is done with it.
class TraceStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                          public MicrobatchObserver,
                          public std::enable_shared_from_this<TraceStream> {
 public:
  // Begins the answer. The caller lets the engine know of it.
  static std::shared_ptr<TraceStream> Begin(const PipelineSnapshot& pipeline, TraceStreamOptions options);
  ~TraceStream() override;

  void OnMicrobatch(Epoch epoch, const MicrobatchAccount& account) override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  explicit TraceStream(TraceStreamOptions options);
  void OnTimeUp();
  void WriteOrFinish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const TraceStreamOptions options_;
  grpc::Alarm alarm_;
  Mutex mutex_;
  std::shared_ptr<TraceStream> self_ ABSL_GUARDED_BY(mutex_);  // until the call is done
  std::optional<v1::TraceEvent> waiting_ ABSL_GUARDED_BY(mutex_);
  grpc::ByteBuffer outgoing_ ABSL_GUARDED_BY(mutex_);  // gRPC's while a write is outstanding
  v1::TraceEnd end_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool time_up_ ABSL_GUARDED_BY(mutex_) = false;
  bool end_written_ ABSL_GUARDED_BY(mutex_) = false;
  bool gone_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace millrace
