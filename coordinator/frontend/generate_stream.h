// One client's stream of GenerateEvents.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "coordinator/frontend/request_registry.h"
#include "millrace/v1/inference.pb.h"

namespace millrace {

struct GenerateStreamOptions {
  const Clock* clock = nullptr;
  // Of events that wait while the client does not read; beyond, the call is cancelled.
  size_t max_mailbox_bytes = size_t{16} << 20;
  // Deltas that wait are merged into one event up to so many bytes.
  size_t max_merged_bytes = size_t{64} << 10;
};

// The reactor of one Generate call. gRPC threads call the On... functions; the text thread calls Send and
// End; RequestEnd comes from any thread. One write is outstanding at a time, events wait in the mailbox, and
// Finish is called exactly once: after End, when the mailbox is empty. The object owns itself until gRPC is
// done with it.
class GenerateStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  // Called once, from the thread of the first RequestEnd. Must not wait.
  using EndRequested = std::function<void(SequenceId)>;

  // All pointers outlive the call.
  static std::shared_ptr<GenerateStream> Create(SequenceId id, grpc::CallbackServerContext* context,
                                                RequestRegistry* registry, GenerateStreamOptions options,
                                                EndRequested end_requested);

  SequenceId id() const { return id_; }
  const std::string& request_id() const { return request_id_; }
  void set_request_id(std::string id) {
    request_id_ = std::move(id);
  }                                                  // before any other thread sees the object
  absl::Time deadline() const { return deadline_; }  // of the call, on the steady clock

  // Queues an event. Dropped when the client is gone.
  void Send(v1::GenerateEvent event);

  // The last call of its owner: what is queued is written, then the call ends with `status`.
  void End(const absl::Status& status);

  // Asks the owner to end the request with `why`; the first call counts.
  void RequestEnd(absl::Status why);
  // OK as long as nobody asked.
  absl::Status end_requested() const;

  // Cancels the call if a write has been outstanding for `timeout`: the client does not read.
  void CancelIfStalled(absl::Duration timeout);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  struct Waiting {
    v1::GenerateEvent event;
    size_t bytes;
  };

  GenerateStream(SequenceId id, grpc::CallbackServerContext* context, RequestRegistry* registry,
                 GenerateStreamOptions options, EndRequested end_requested);

  void CancelCall(absl::Status why);
  bool TryMerge(v1::GenerateEvent& event, size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteOrFinish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropMailbox() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const SequenceId id_;
  const absl::Time deadline_;
  RequestRegistry* const registry_;
  const GenerateStreamOptions options_;
  const EndRequested on_end_requested_;
  std::string request_id_;

  mutable Mutex mutex_;
  grpc::CallbackServerContext* context_ ABSL_GUARDED_BY(mutex_);  // null once the call is done
  std::shared_ptr<GenerateStream> self_ ABSL_GUARDED_BY(mutex_);  // until the call is done
  std::deque<Waiting> mailbox_ ABSL_GUARDED_BY(mutex_);
  size_t mailbox_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  grpc::ByteBuffer outgoing_ ABSL_GUARDED_BY(mutex_);  // gRPC's while a write is outstanding
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;
  bool client_gone_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time waiting_since_ ABSL_GUARDED_BY(mutex_);  // of the outstanding write or finish
  std::optional<grpc::Status> end_ ABSL_GUARDED_BY(mutex_);
  absl::Status end_requested_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace millrace
