// An engine that does what the test says.
#pragma once

#include <atomic>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/bounded_queue.h"
#include "common/mutex.h"
#include "coordinator/pipeline/engine_port.h"
#include "gtest/gtest.h"
#include "tests/testing/tiny_llama.h"

namespace millrace {

// Long enough never to pass in a test that works.
inline constexpr absl::Duration kPatience = absl::Seconds(60);

// The token of one byte in the tiny vocabulary.
inline TokenId ByteToken(char byte) {
  return kTinyFirstByteToken + static_cast<uint8_t>(byte);
}

// Thread: any.
class FakeEngine final : public EnginePort {
 public:
  struct Cancelled {
    SequenceId id;
    absl::Status why;
  };
  struct Stopped {
    SequenceId id;
    uint32_t output_tokens = 0;
  };

  void set_sink(TokenSink* sink) { sink_ = sink; }
  void set_cluster(ClusterSnapshot cluster) { cluster_ = std::move(cluster); }       // before the first call
  void set_snapshot(PipelineSnapshot snapshot) { snapshot_ = std::move(snapshot); }  // before the first call

  // From now on Submit answers so.
  void RefuseSubmits(absl::Status why) {
    MutexLock lock(&mutex_);
    refusal_ = std::move(why);
  }
  // From now on Submit does not return, and with it the text thread stands still, until Release.
  void HoldSubmits() {
    MutexLock lock(&mutex_);
    held_ = true;
  }
  void Release() {
    MutexLock lock(&mutex_);
    held_ = false;
    changed_.NotifyAll();
  }

  // From now on Cancel ends the sequence at once.
  void AnswerCancels() { answer_cancels_ = true; }

  absl::Status Submit(SequenceRequest request) override {
    MutexLock lock(&mutex_);
    submitting_.Push(request.id);
    while (held_) changed_.Wait(&mutex_);
    if (refusal_.ok()) submitted_.Push(std::move(request));
    return refusal_;
  }
  void Cancel(SequenceId id, absl::Status why) override {
    cancelled_.Push({id, why});
    if (answer_cancels_) Fail(id, std::move(why));
  }
  void StopAt(SequenceId id, uint32_t output_tokens) override { stopped_.Push({id, output_tokens}); }
  PipelineSnapshot Snapshot() const override { return snapshot_; }
  ClusterSnapshot Cluster() const override { return cluster_; }
  void Observe(std::weak_ptr<MicrobatchObserver> observer) override { observers_.Push(std::move(observer)); }
  // The observer that came next; empty on time-out.
  std::weak_ptr<MicrobatchObserver> NextObserver() {
    return observers_.Pop(kPatience).value_or(std::weak_ptr<MicrobatchObserver>());
  }

  // The next call of that kind; waits for it.
  SequenceRequest NextSubmit() { return Next(submitted_, "Submit"); }
  SequenceId NextSubmitting() { return Next(submitting_, "the beginning of Submit"); }
  Cancelled NextCancel() { return Next(cancelled_, "Cancel"); }
  Stopped NextStop() { return Next(stopped_, "StopAt"); }
  size_t submits_left() const { return submitted_.size(); }
  size_t cancels_left() const { return cancelled_.size(); }
  size_t stops_left() const { return stopped_.size(); }

  void Act(std::vector<SchedulerAction> actions) { sink_->OnActions(std::move(actions)); }
  // One token for each byte.
  void Emit(SequenceId id, absl::string_view text) {
    std::vector<SchedulerAction> actions;
    for (char c : text) actions.push_back(TokenReady{id, ByteToken(c), std::nullopt});
    Act(std::move(actions));
  }
  void EmitToken(SequenceId id, TokenId token) { Act({TokenReady{id, token, std::nullopt}}); }
  void Finish(SequenceId id, FinishReason reason, uint32_t output_tokens,
              std::optional<TokenId> matched = std::nullopt) {
    SequenceFinished finished;
    finished.numeric_classes = {"cpu", "cuda"};
    finished.sequence = id;
    finished.reason = reason;
    finished.matched_token = matched;
    finished.prompt_tokens = 5;
    finished.output_tokens = output_tokens;
    finished.timings = {absl::Milliseconds(1500), absl::Milliseconds(20), absl::Nanoseconds(7)};
    Act({finished});
  }
  void Fail(SequenceId id, absl::Status why) {
    SequenceFinished finished;
    finished.sequence = id;
    finished.status = std::move(why);
    Act({finished});
  }

 private:
  template <typename T>
  static T Next(BoundedQueue<T>& queue, const char* what) {
    std::optional<T> next = queue.Pop(kPatience);
    if (!next.has_value()) {
      ADD_FAILURE() << what << " was not called";
      return T();
    }
    return *std::move(next);
  }

  TokenSink* sink_ = nullptr;
  PipelineSnapshot snapshot_;
  ClusterSnapshot cluster_;
  std::atomic<bool> answer_cancels_{false};
  Mutex mutex_;
  CondVar changed_;
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);
  bool held_ ABSL_GUARDED_BY(mutex_) = false;
  BoundedQueue<std::weak_ptr<MicrobatchObserver>> observers_{100};
  BoundedQueue<SequenceId> submitting_{100000};
  BoundedQueue<SequenceRequest> submitted_{100000};
  BoundedQueue<Cancelled> cancelled_{100000};
  BoundedQueue<Stopped> stopped_{100000};
};

}  // namespace millrace
