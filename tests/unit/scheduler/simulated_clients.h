// What the world outside knows of its requests, and checks of everything the scheduler says and plans about
// them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/scheduler/microbatch_plan.h"
#include "coordinator/scheduler/scheduler.h"
#include "tests/unit/scheduler/toy_model.h"

namespace millrace::testing {

struct SimulatedClient {
  SequenceRequest request;
  uint64_t most_tokens = 0;
  ToyOutcome outcome;  // what it must give if nothing cuts it short
  absl::Time arrived;
  absl::Time first_planned = absl::InfiniteFuture();
  absl::Time first_token = absl::InfiniteFuture();
  absl::Time last_token = absl::InfiniteFuture();
  uint32_t received = 0;         // tokens
  uint32_t prompt_reported = 1;  // prompt tokens with log probabilities received, the first has none
  uint64_t started_by = 0;       // microbatch
  uint32_t cached_prompt = 0;    // positions that it did not compute when it first started
  uint32_t planned_end = 0;      // positions in microbatches so far, since the last restart
  uint32_t in_flight = 0;        // microbatches
  bool sampling_in_flight = false;
  uint64_t active_microbatch = 0;  // the last one that carried it, or that was planned when it became ready
  std::optional<uint32_t> stop_after;  // StopAt is called once so many tokens were received
  std::optional<uint32_t> stopped_at;  // StopAt was called
  absl::StatusCode must_end_with = absl::StatusCode::kOk;  // other than OK: by the next actions
};

// Whose turn comes first.
bool IsOlder(const SimulatedClient& a, const SimulatedClient& b);

class SimulatedClients {
 public:
  explicit SimulatedClients(SchedulerOptions options) : options_(std::move(options)) {}

  void OnRingReady(const RingShape& shape);
  void OnRingLost();
  void OnHold() { holding_ = true; }
  void OnRelease();

  // Registers a request before it is given to the scheduler. `waiting`: how many wait.
  void Add(const SequenceRequest& request, uint32_t waiting, absl::Time now);
  void Expect(SequenceId id, absl::StatusCode code);  // unless it has ended
  void ExpectStop(SequenceId id, uint32_t tokens);
  void ExpectDeadlines(absl::Time now);

  absl::Status OnPlan(const MicrobatchPlan& plan, absl::Time now);
  // All tokens of a live sequence that are known now.
  std::vector<TokenId> TokensOf(SequenceId id) const;
  void OnLanded(MicrobatchId id);
  absl::Status OnAction(const SchedulerAction& action, absl::Time now);
  // After the actions of an event were passed: nothing that had to end is live.
  absl::Status CheckEnds() const;
  // After PlanNext gave nothing: everything that could run does.
  absl::Status CheckProgress(const SchedulerLoad& load);

  using Live = std::map<SequenceId, SimulatedClient>;
  const Live& live() const { return live_; }
  uint64_t ended() const { return ended_; }

 private:
  struct Place {
    SequenceId id;
    uint64_t since = 0;  // microbatch
  };

  absl::StatusCode Refusal(const SequenceRequest& request, uint32_t waiting, absl::Time now) const;
  absl::Status CheckSegment(const PlanSegment& segment, const SimulatedClient& client) const;
  absl::Status OnSegment(const PlanSegment& segment, absl::Time now);
  absl::Status CheckSampling(const PlanSegment& segment, const SimulatedClient& client) const;
  absl::Status OnPromptLogprobs(const PromptLogprobsReady& ready);
  absl::Status OnToken(const TokenReady& ready, absl::Time now);
  absl::Status OnFinished(const SequenceFinished& finished, absl::Time now);
  absl::Status CheckReason(const SequenceFinished& finished, const SimulatedClient& client) const;
  // Of those that have started.
  Live::const_iterator Oldest(const std::function<bool(const SimulatedClient&)>& eligible) const;
  absl::Status CheckTurn(SequenceId id, const SimulatedClient& client, Place* place);
  absl::Status CheckTimings(const SequenceFinished& finished, const SimulatedClient& client,
                            absl::Time now) const;

  bool Held(const SimulatedClient& client) const {
    return holding_ && client.first_planned == absl::InfiniteFuture();
  }
  // What it must give on this ring, or on any if there is none.
  void Foresee(SimulatedClient* client) const;

  const SchedulerOptions options_;
  std::optional<RingShape> ring_;
  bool holding_ = false;
  Live live_;  // ids are given in order of arrival
  std::map<MicrobatchId, std::vector<SequenceId>> in_flight_;
  uint64_t last_microbatch_ = 0;
  Place oldest_;
  Place oldest_prefill_;
  uint64_t short_until_ = 0;  // the last microbatch after which no block was free
  uint32_t most_running_ = 0;
  uint64_t ended_ = 0;
};

}  // namespace millrace::testing
