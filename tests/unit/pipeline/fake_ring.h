// An engine between a ring and a frontend that the test plays.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "common/bounded_queue.h"
#include "common/buffer_pool.h"
#include "coordinator/pipeline/engine.h"
#include "gtest/gtest.h"

namespace millrace::testing {

inline constexpr absl::Duration kPatience = absl::Seconds(60);
inline constexpr TokenId kEnd = 2;

// Keeps every action. Thread: engine, but for Pop and SetRoom.
class FakeSink final : public TokenSink {
 public:
  bool HasRoom() const override { return room_; }
  void OnActions(std::vector<SchedulerAction> actions) override {
    for (SchedulerAction& action : actions) actions_.Push(std::move(action));
  }

  void SetRoom(bool room) { room_ = room; }
  std::optional<SchedulerAction> Pop(absl::Duration timeout = kPatience) { return actions_.Pop(timeout); }
  size_t size() const { return actions_.size(); }

 private:
  std::atomic<bool> room_{true};
  BoundedQueue<SchedulerAction> actions_{100000};
};

class EngineTest : public ::testing::Test {
 protected:
  EngineTest();
  ~EngineTest() override;

  // Replaces the engine by one with other options.
  void Make(EngineOptions options);
  EngineOptions Options();

  void RaiseRing(uint64_t epoch, uint32_t stages = 2, uint32_t max_in_flight = 3);
  // A prompt of one token; ends by length.
  static SequenceRequest Request(uint64_t id, uint32_t max_tokens = 1);
  void Submit(SequenceRequest request);

  // The next plan that the engine sends.
  v1::Plan NextPlan();
  // What the last stage would answer: `token` for each segment that samples.
  HopMessage Answer(const v1::Plan& plan, TokenId token = 50);
  HopMessage ResultMessage(const v1::Plan& plan, const std::string& payload);
  void Return(const v1::Plan& plan, TokenId token = 50) {
    ASSERT_TRUE(engine_->Returned(Answer(plan, token)));
  }

  void ExpectToken(uint64_t id, TokenId token);
  SequenceFinished ExpectFinished(uint64_t id, absl::StatusCode code);
  // Every event pushed so far has been handled when this returns.
  void AwaitHandled();

  BufferPool pool_{8};
  FakeSink sink_;
  BoundedQueue<v1::Plan> plans_{1000};
  BoundedQueue<Epoch> faults_{10};
  std::unique_ptr<Engine> engine_;
  uint64_t next_probe_ = 1000000;
};

}  // namespace millrace::testing
