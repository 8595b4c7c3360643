#include "common/transport/hop_link.h"

#include <deque>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/process.h"
#include "common/transport/channels.h"
#include "common/transport/hop_frame.h"
#include "common/transport/tls_probe.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"

namespace millrace {
namespace {

constexpr char kHopMethod[] = "/millrace.v1.Ring/Hop";

}  // namespace

// One write is outstanding at a time; the rest waits in the queue. gRPC may use this object until OnDone.
class HopLink::Stream final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit Stream(HopLinkOptions options)
      : options_(std::move(options)), stub_(MakeBulkChannel(options_.address, options_.credentials)) {
    context_.AddMetadata(kSecretMetadata, options_.secret);
    context_.AddMetadata(kEpochMetadata, absl::StrCat(options_.epoch.value()));
    context_.set_wait_for_ready(true);
    stub_.PrepareBidiStreamingCall(&context_, kHopMethod, grpc::StubOptions(), this);
    // Send starts writes from outside of gRPC's calls, and gRPC frees a stream without a hold before it says
    // so.
    AddHold();
    StartRead(&incoming_);
    StartCall();
    if (options_.own_writer) writer_ = std::thread([this] { WriteLoop(); });
  }
  ~Stream() override {
    if (writer_.joinable()) writer_.join();
  }

  absl::Status WaitConnected(absl::Duration timeout) {
    const absl::Time deadline = Clock::Steady().Now() + timeout;
    MutexLock lock(&mutex_);
    while (!connected_ && status_.ok()) {
      const absl::Duration left = deadline - Clock::Steady().Now();
      if (left <= absl::ZeroDuration()) break;
      changed_.WaitFor(&mutex_, left);
    }
    if (connected_ || !status_.ok()) return status_;
    return absl::UnavailableError(
        absl::StrCat("no connection to ", options_.address, " within ", absl::FormatDuration(timeout)));
  }

  std::string ExplainTls() const { return ExplainFailedConnection(options_.address, options_.credentials); }

  bool Send(HopMessage message) {
    MutexLock lock(&mutex_);
    if (ended_ || closing_ || queue_.size() >= options_.max_queued) return false;
    queue_.push_back(EncodeHopMessage(message));
    if (queue_.size() > 1) return true;  // goes on when the write before it is done
    if (options_.own_writer) {
      write_due_ = true;
      changed_.NotifyAll();
    } else {
      StartWrite(&queue_.front());
    }
    return true;
  }

  void Close() {
    {
      MutexLock lock(&mutex_);
      if (closing_) return;
      closing_ = true;
      changed_.NotifyAll();
    }
    context_.TryCancel();
  }

  void AwaitDone() {
    MutexLock lock(&mutex_);
    while (!done_) changed_.Wait(&mutex_);
  }

  void OnReadInitialMetadataDone(bool ok) override {
    MutexLock lock(&mutex_);
    connected_ = ok;
    changed_.NotifyAll();
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(&mutex_);
    queue_.pop_front();
    if (ok && !queue_.empty()) StartWrite(&queue_.front());
  }

  // The receiver sends nothing; a finished read means that it ended the stream.
  void OnReadDone(bool ok) override {
    if (ok) return StartRead(&incoming_);
    {
      MutexLock lock(&mutex_);
      ended_ = true;
    }
    // Not cancelled: that could replace the receiver's status, which says why.
    RemoveHold();
  }

  void OnDone(const grpc::Status& status) override {
    // A stream that ends is broken, however politely.
    const absl::StatusCode code =
        status.ok() ? absl::StatusCode::kUnavailable : static_cast<absl::StatusCode>(status.error_code());
    const absl::Status reason(
        code, absl::StrCat("hop to ", options_.address, ": ",
                           status.error_message().empty() ? "stream ended" : status.error_message()));
    bool report = false;
    {
      MutexLock lock(&mutex_);
      status_ = reason;
      report = !closing_;
      changed_.NotifyAll();
    }
    if (report && options_.on_broken) options_.on_broken(reason);
    MutexLock lock(&mutex_);
    done_ = true;
    changed_.NotifyAll();
  }

 private:
  void WriteLoop() {
    NameThread("hop");
    MutexLock lock(&mutex_);
    while (!closing_) {
      if (std::exchange(write_due_, false) && !ended_) StartWrite(&queue_.front());
      if (!closing_ && !write_due_) changed_.Wait(&mutex_);
    }
  }

  const HopLinkOptions options_;
  std::thread writer_;
  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::ByteBuffer incoming_;
  Mutex mutex_;
  CondVar changed_;
  std::deque<grpc::ByteBuffer> queue_ ABSL_GUARDED_BY(mutex_);
  bool write_due_ ABSL_GUARDED_BY(mutex_) = false;  // the first of the queue waits for the writer
  bool connected_ ABSL_GUARDED_BY(mutex_) = false;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;  // nothing may be started from outside any more
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

HopLink::HopLink(HopLinkOptions options) : stream_(std::make_unique<Stream>(std::move(options))) {}

HopLink::~HopLink() {
  stream_->Close();
  stream_->AwaitDone();
}

absl::Status HopLink::WaitConnected(absl::Duration timeout) {
  const absl::Status status = stream_->WaitConnected(timeout);
  if (!absl::IsUnavailable(status)) return status;
  const std::string why = stream_->ExplainTls();
  return why.empty() ? status : absl::UnavailableError(why);
}
bool HopLink::Send(HopMessage message) {
  return stream_->Send(std::move(message));
}
void HopLink::Close() {
  stream_->Close();
}

}  // namespace millrace
