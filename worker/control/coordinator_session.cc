#include "worker/control/coordinator_session.h"

#include <chrono>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/transport/channels.h"
#include "common/transport/tls_probe.h"
#include "grpcpp/grpcpp.h"
#include "millrace/v1/cluster.grpc.pb.h"

namespace millrace {
namespace {

constexpr size_t kMaxQueued = 1024;

}  // namespace

// One write is outstanding at a time; the rest waits in the queue.
class CoordinatorSession::Stream final
    : public grpc::ClientBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage> {
 public:
  Stream(const std::string& address, const SharedCredentials& credentials,
         CoordinatorSessionCallbacks callbacks)
      : callbacks_(std::move(callbacks)),
        stub_(v1::Cluster::NewStub(MakeControlChannel(address, credentials))) {
    stub_->async()->Join(&context_, this);
    // Send and Close start work from outside of gRPC's calls, and gRPC frees a stream without a hold before
    // it says so.
    AddHold();
    StartRead(&incoming_);
    StartCall();
  }

  bool Send(v1::WorkerMessage message) {
    MutexLock lock(&mutex_);
    if (ended_ || closing_ || queue_.size() >= kMaxQueued) return false;
    queue_.push_back(std::move(message));
    if (queue_.size() == 1) StartWrite(&queue_.front());
    return true;
  }

  void Close() {
    MutexLock lock(&mutex_);
    if (ended_ || closing_) return;
    closing_ = true;
    if (queue_.empty()) StartWritesDone();
  }

  void CancelAndAwait() {
    context_.TryCancel();
    MutexLock lock(&mutex_);
    while (!done_) changed_.Wait(&mutex_);
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(&mutex_);
    queue_.pop_front();
    if (!ok) return;
    if (!queue_.empty()) {
      StartWrite(&queue_.front());
    } else if (closing_) {
      StartWritesDone();
    }
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      {
        MutexLock lock(&mutex_);
        ended_ = true;
      }
      return RemoveHold();
    }
    callbacks_.on_message(std::move(incoming_));
    incoming_.Clear();
    StartRead(&incoming_);
  }

  void OnDone(const grpc::Status& status) override {
    callbacks_.on_closed(FromPeerStatus(status));
    MutexLock lock(&mutex_);
    done_ = true;
    changed_.NotifyAll();
  }

 private:
  const CoordinatorSessionCallbacks callbacks_;
  std::unique_ptr<v1::Cluster::Stub> stub_;
  grpc::ClientContext context_;
  v1::CoordinatorMessage incoming_;
  Mutex mutex_;
  CondVar changed_;
  std::deque<v1::WorkerMessage> queue_ ABSL_GUARDED_BY(mutex_);
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;  // nothing may be started from outside any more
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
};

CoordinatorSession::CoordinatorSession(const std::string& address, const SharedCredentials& credentials,
                                       CoordinatorSessionCallbacks callbacks)
    : stream_(std::make_unique<Stream>(address, credentials, std::move(callbacks))) {}

CoordinatorSession::~CoordinatorSession() {
  stream_->CancelAndAwait();
}

bool CoordinatorSession::Send(v1::WorkerMessage message) {
  return stream_->Send(std::move(message));
}
void CoordinatorSession::Close() {
  stream_->Close();
}

absl::Status WaitForCoordinator(const std::string& address, const SharedCredentials& credentials,
                                absl::Duration timeout,
                                const std::function<bool(absl::Duration)>& keep_waiting) {
  const std::shared_ptr<grpc::Channel> channel = MakeControlChannel(address, credentials);
  const absl::Time begin = Clock::Steady().Now();
  std::string explained;
  while (!channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(1))) {
    const absl::Duration waited = Clock::Steady().Now() - begin;
    const std::string why = ExplainFailedConnection(address, credentials);
    if (!why.empty() && why != explained) LogWarning("cannot join yet: ", why);
    explained = why;
    if (waited >= timeout && !why.empty()) return absl::UnavailableError(why);
    if (waited >= timeout) {
      return absl::UnavailableError(
          absl::StrCat("no coordinator answers at ", address, " after ",
                       absl::FormatDuration(absl::Trunc(waited, absl::Seconds(1))),
                       "; is it running, and is this its --cluster-listen address?"));
    }
    if (!keep_waiting(waited)) return absl::CancelledError("stopped");
  }
  return absl::OkStatus();
}

}  // namespace millrace
