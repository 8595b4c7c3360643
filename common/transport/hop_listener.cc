#include "common/transport/hop_listener.h"

#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/transport/channels.h"
#include "common/transport/hop_link.h"
#include "common/transport/secret.h"
#include "grpcpp/grpcpp.h"
#include "millrace/v1/cluster.grpc.pb.h"

namespace millrace {
namespace {

absl::string_view MetadataValue(const grpc::CallbackServerContext& context, const char* key) {
  const auto it = context.client_metadata().find(key);
  return it == context.client_metadata().end() ? absl::string_view()
                                               : absl::string_view(it->second.data(), it->second.size());
}

// Refuses a call at once.
class RefusedHop final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit RefusedHop(const absl::Status& why) { Finish(ToPeerStatus(why)); }
  void OnDone() override { delete this; }
};

// A session and the streams that belong to it. `deliver` runs under the lock, so that none runs after Retire.
class LiveSession {
 public:
  explicit LiveSession(HopSession session) : session_(std::move(session)), pool_(kIdleBuffers) {}

  Epoch epoch() const { return session_.epoch; }

  absl::Status Deliver(const grpc::ByteBuffer& bytes) {
    absl::StatusOr<HopMessage> message = DecodeHopMessage(bytes, session_.limits, pool_);
    if (!message.ok()) return message.status();
    if (message->epoch != session_.epoch) return absl::OkStatus();  // stale: dropped
    MutexLock lock(&mutex_);
    if (retired_) return absl::FailedPreconditionError("the epoch is over");
    if (!session_.deliver(*std::move(message))) {
      return absl::ResourceExhaustedError("more microbatches in flight than agreed on");
    }
    return absl::OkStatus();
  }

  bool retired() const {
    MutexLock lock(&mutex_);
    return retired_;
  }
  void Retire() {
    MutexLock lock(&mutex_);
    retired_ = true;
  }

 private:
  static constexpr size_t kIdleBuffers = 16;
  const HopSession session_;
  BufferPool pool_;
  mutable Mutex mutex_;
  bool retired_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

class HopListener::RingService final
    : public millrace::v1::Ring::WithRawCallbackMethod_Hop<millrace::v1::Ring::Service> {
 public:
  explicit RingService(std::string secret) : secret_(std::move(secret)) {}

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Hop(
      grpc::CallbackServerContext* context) override;

  void Replace(std::shared_ptr<LiveSession> session);

 private:
  class InboundHop;
  const std::string secret_;
  Mutex mutex_;
  std::shared_ptr<LiveSession> session_ ABSL_GUARDED_BY(mutex_);
  std::set<InboundHop*> hops_ ABSL_GUARDED_BY(mutex_);
};

// One inbound stream. Reads are re-armed only after the last message found room, so TCP holds back a sender
// that is too fast.
class HopListener::RingService::InboundHop final
    : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  InboundHop(RingService* service, std::shared_ptr<LiveSession> session)
      : service_(service), session_(std::move(session)) {}

  void Begin() {
    StartSendInitialMetadata();  // tells the sender that the stream was accepted
    StartRead(&incoming_);
  }

  // Ends the stream once, from whichever thread comes first.
  void End(const absl::Status& status) {
    {
      MutexLock lock(&mutex_);
      if (ended_) return;
      ended_ = true;
    }
    Finish(ToPeerStatus(status));
  }

  void OnReadDone(bool ok) override {
    if (!ok) return End(absl::OkStatus());
    const absl::Status status = session_->Deliver(incoming_);
    if (!status.ok()) return End(status);
    StartRead(&incoming_);
  }

  void OnCancel() override { End(absl::CancelledError("the sender is gone")); }

  void OnDone() override {
    {
      MutexLock lock(&service_->mutex_);
      service_->hops_.erase(this);
    }
    delete this;
  }

 private:
  RingService* const service_;
  const std::shared_ptr<LiveSession> session_;
  grpc::ByteBuffer incoming_;
  Mutex mutex_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* HopListener::RingService::Hop(
    grpc::CallbackServerContext* context) {
  if (!SecretsEqual(MetadataValue(*context, kSecretMetadata), secret_)) {
    return new RefusedHop(absl::PermissionDeniedError("wrong join secret"));
  }
  uint64_t epoch = 0;
  const bool parsed = absl::SimpleAtoi(MetadataValue(*context, kEpochMetadata), &epoch);
  InboundHop* hop = nullptr;
  {
    MutexLock lock(&mutex_);
    if (parsed && session_ != nullptr && session_->epoch() == Epoch(epoch)) {
      hop = new InboundHop(this, session_);
      hops_.insert(hop);
    }
  }
  if (hop == nullptr) {
    return new RefusedHop(
        absl::FailedPreconditionError(absl::StrCat("epoch ", epoch, " is not the current one")));
  }
  hop->Begin();
  return hop;
}

void HopListener::RingService::Replace(std::shared_ptr<LiveSession> session) {
  std::shared_ptr<LiveSession> former;
  {
    MutexLock lock(&mutex_);
    former = std::exchange(session_, std::move(session));
    // Under the lock: a stream leaves the set, under the same lock, before it is deleted.
    for (InboundHop* hop : hops_) hop->End(absl::FailedPreconditionError("the epoch is over"));
  }
  if (former != nullptr) former->Retire();
}

HopListener::HopListener(std::string secret) : service_(std::make_unique<RingService>(std::move(secret))) {}
HopListener::~HopListener() = default;

grpc::Service* HopListener::service() {
  return service_.get();
}

void HopListener::SetSession(HopSession session) {
  service_->Replace(std::make_shared<LiveSession>(std::move(session)));
}

void HopListener::ClearSession() {
  service_->Replace(nullptr);
}

}  // namespace millrace
