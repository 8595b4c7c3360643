// The loop that turns the ring: feeds events to the scheduler, sends its plans to the stages, hands its
// actions to the frontend.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "common/bounded_queue.h"
#include "common/clock.h"
#include "common/health_state.h"
#include "common/hop_message.h"
#include "common/mutex.h"
#include "coordinator/pipeline/bubble_meter.h"
#include "coordinator/pipeline/engine_port.h"
#include "coordinator/scheduler/scheduler.h"
#include "millrace/v1/cluster.pb.h"

namespace millrace {

// A complete pipeline, as the cluster hands it to the engine.
struct RingConnection {
  Epoch epoch;
  RingShape shape;
  std::vector<StageSnapshot> stages;
  // Sends a plan to every stage; never waits. False: a stage is gone (its loss is reported by the cluster).
  std::function<bool(const v1::Plan&)> send_plan;
};

struct EngineOptions {
  SchedulerOptions scheduler;
  uint32_t vocabulary_size = UINT32_MAX;  // of the model; results with other tokens are refused
  uint64_t activation_row_bytes = 0;      // that a row takes over a hop between stages
  uint32_t max_in_flight_limit = 64;      // no ring has a larger window
  const Clock* clock = &Clock::Steady();
  HealthState* health = nullptr;  // outlives the engine; null: nobody asks whether the loop turns
  // The ring gave results that cannot be: it should be given up. Thread: engine.
  std::function<void(Epoch, absl::Status)> on_ring_fault;
  // The first microbatch of each ring is this token alone, of no request; the ring counts as proven when it
  // has come back. Empty: at once.
  std::optional<TokenId> canary;
  absl::Duration canary_patience = absl::Seconds(10);  // after which the log says what is waited for
  // Requests run from now on, or no longer; what Snapshot() tells has changed before. True from when the ring
  // is proven; a ring that goes while requests are held changes nothing. Thread: engine.
  std::function<void(bool)> on_serving;
  // Hold(number) is in effect, and nothing is left of what had begun. Once a number. Thread: engine. Must not
  // wait.
  std::function<void(uint64_t number)> on_quiet;
};

// One ring is one Engine. Thread: engine (started by Start) owns the scheduler; the public calls are safe
// from any thread.
class Engine final : public EnginePort {
 public:
  // `sink` outlives this.
  Engine(EngineOptions options, TokenSink* sink);
  ~Engine() override;

  void Start();
  // Ends every live sequence with UNAVAILABLE, then the thread.
  void Stop();

  absl::Status Submit(SequenceRequest request) override;
  void Cancel(SequenceId id, absl::Status why) override;
  void StopAt(SequenceId id, uint32_t output_tokens) override;
  PipelineSnapshot Snapshot() const override;
  ClusterSnapshot Cluster() const override;
  void Observe(std::weak_ptr<MicrobatchObserver> observer) override;

  // From the cluster.
  void SetState(PipelineState state, std::string detail);
  void SetCluster(ClusterSnapshot cluster);
  void RingReady(RingConnection ring);
  void RingLost(Epoch epoch, absl::Status why);
  // As Scheduler::Hold; `number` is not 0 and differs from those before. Release lets what is held run once
  // the ring is proven, or ends it with UNAVAILABLE NO_REPLACEMENT where there is no ring.
  void Hold(uint64_t number);
  void Release();
  // The stage's clock minus the coordinator's, as is known now. Kept for a ring that is still to come, and
  // used from the engine's next turn on; wakes nobody.
  void SetClockOffset(Epoch epoch, uint32_t stage, absl::Duration offset);
  // A microbatch came back over the last hop. False: no room, which means that the sender broke the window.
  bool Returned(HopMessage message);

 private:
  struct CancelEvent {
    SequenceId id;
    absl::Status why;
  };
  struct StopAtEvent {
    SequenceId id;
    uint32_t output_tokens;
  };
  struct RingLostEvent {
    Epoch epoch;
    absl::Status why;
  };
  struct HoldEvent {
    uint64_t number = 0;  // 0: release
  };
  using Event = std::variant<SequenceRequest, CancelEvent, StopAtEvent, RingConnection, RingLostEvent,
                             HoldEvent, HopMessage>;

  void RunLoop();
  void RunOnce();
  absl::Duration WaitTime() const;
  void Handle(Event event, absl::Time now);
  void OnReturned(const HopMessage& message, absl::Time now);
  void TellObservers(const MicrobatchAccount& account);
  void CountPlan(const MicrobatchPlan& plan, absl::Time now);
  void TakeRing(RingConnection ring, absl::Time now);
  void LoseRing(const absl::Status& why, absl::Time now);
  void OnHold(const HoldEvent& event);
  void SendCanary(absl::Time now);
  void LookForCanary(absl::Time now);
  void ReleaseIfDue(absl::Time now);
  void TellIfQuiet();
  void TakeClockOffsets();
  void SendPlans();
  void MeasureStages(const SchedulerLoad& load, absl::Time now);
  void Publish(absl::Time now);
  void FillSnapshot(const SchedulerLoad& load, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(snapshot_mutex_);
  void HandOverActions();

  const EngineOptions options_;
  TokenSink* const sink_;
  const uint32_t max_live_;
  std::atomic<uint32_t> live_{0};  // submitted and not yet finished
  std::atomic<bool> stopping_{false};
  BoundedQueue<Event> inbox_;
  std::thread thread_;

  // Thread: engine.
  Scheduler scheduler_;
  std::optional<RingConnection> ring_;
  std::optional<BubbleMeter> meter_;  // of the ring's epoch
  bool proven_ = false;               // a token has gone round this ring
  absl::Time canary_sent_ = absl::InfinitePast();
  absl::Time canary_due_ = absl::InfiniteFuture();  // when the log says that it is late
  bool serving_ = false;                            // as on_serving was told
  uint64_t hold_ = 0;                               // number of the hold in effect; 0: none
  bool quiet_told_ = false;                         // of that hold
  bool release_asked_ = false;
  bool returned_ = false;                   // a microbatch came back in this turn of the loop
  bool held_back_ = false;                  // the sink had no room when plans were last asked for
  absl::Duration active_;                   // of this epoch, with a microbatch in flight
  std::optional<absl::Time> active_since_;  // set while one is

  // Not in the inbox: what comes unasked must not take the room of results.
  Mutex clock_mutex_;
  Epoch clock_epoch_ ABSL_GUARDED_BY(clock_mutex_);
  std::map<uint32_t, absl::Duration> clock_offsets_ ABSL_GUARDED_BY(clock_mutex_);  // by stage; new ones

  std::atomic<bool> observed_{false};  // observers_ is not empty
  Mutex observers_mutex_;
  std::vector<std::weak_ptr<MicrobatchObserver>> observers_ ABSL_GUARDED_BY(observers_mutex_);

  mutable Mutex snapshot_mutex_;
  PipelineSnapshot snapshot_ ABSL_GUARDED_BY(snapshot_mutex_);
  ClusterSnapshot cluster_ ABSL_GUARDED_BY(snapshot_mutex_);
};

}  // namespace millrace
