#include "tests/unit/pipeline/fake_ring.h"

#include <algorithm>
#include <utility>

namespace millrace::testing {

EngineTest::EngineTest() {
  Make(Options());
}

EngineTest::~EngineTest() {
  engine_->Stop();
}

EngineOptions EngineTest::Options() {
  EngineOptions options;
  options.scheduler.context_tokens = 1000;
  options.scheduler.max_running_sequences = 8;
  options.scheduler.max_waiting_sequences = 16;
  options.scheduler.max_rows = 32;
  options.scheduler.end_tokens = {kEnd};
  options.on_ring_fault = [this](Epoch epoch, absl::Status) { faults_.Push(epoch); };
  return options;
}

void EngineTest::Make(EngineOptions options) {
  if (engine_ != nullptr) engine_->Stop();
  engine_ = std::make_unique<Engine>(std::move(options), &sink_);
  engine_->Start();
}

void EngineTest::RaiseRing(uint64_t epoch, uint32_t stages, uint32_t max_in_flight) {
  RingConnection ring;
  ring.epoch = Epoch(epoch);
  ring.shape = {stages, max_in_flight, 100, 16};
  ring.stages.resize(stages);
  for (uint32_t i = 0; i < stages; ++i) {
    ring.stages[i].first_layer = i;
    ring.stages[i].numeric_class = "class " + std::to_string(i);
  }
  ring.send_plan = [this](const v1::Plan& plan) { return plans_.Push(plan); };
  engine_->RingReady(std::move(ring));
}

SequenceRequest EngineTest::Request(uint64_t id, uint32_t max_tokens) {
  SequenceRequest request;
  request.id = SequenceId(id);
  request.prompt = {100};
  request.max_tokens = max_tokens;
  return request;
}

void EngineTest::Submit(SequenceRequest request) {
  const absl::Status status = engine_->Submit(std::move(request));
  ASSERT_TRUE(status.ok()) << status;
}

v1::Plan EngineTest::NextPlan() {
  std::optional<v1::Plan> plan = plans_.Pop(kPatience);
  EXPECT_TRUE(plan.has_value()) << "no plan was sent";
  return plan.value_or(v1::Plan());
}

HopMessage EngineTest::ResultMessage(const v1::Plan& plan, const std::string& payload) {
  HopMessage message;
  message.kind = HopKind::kResult;
  message.epoch = Epoch(plan.epoch());
  message.microbatch = MicrobatchId(plan.microbatch_id());
  for (const v1::PlanSegment& segment : plan.segments()) message.rows += segment.token_ids_size();
  message.payload = pool_.Get(payload.size());
  std::copy(payload.begin(), payload.end(), message.payload->data);
  return message;
}

HopMessage EngineTest::Answer(const v1::Plan& plan, TokenId token) {
  v1::MicrobatchResult result;
  for (const v1::PlanSegment& planned : plan.segments()) {
    if (!planned.has_sampling()) continue;
    v1::ResultSegment* segment = result.add_segments();
    segment->set_sequence_id(planned.sequence_id());
    segment->set_position(planned.first_position() + planned.token_ids_size());
    segment->set_token_id(token);
  }
  return ResultMessage(plan, result.SerializeAsString());
}

void EngineTest::ExpectToken(uint64_t id, TokenId token) {
  const std::optional<SchedulerAction> action = sink_.Pop();
  ASSERT_TRUE(action.has_value());
  ASSERT_TRUE(std::holds_alternative<TokenReady>(*action));
  EXPECT_EQ(std::get<TokenReady>(*action).sequence, SequenceId(id));
  EXPECT_EQ(std::get<TokenReady>(*action).token, token);
}

SequenceFinished EngineTest::ExpectFinished(uint64_t id, absl::StatusCode code) {
  const std::optional<SchedulerAction> action = sink_.Pop();
  if (!action.has_value() || !std::holds_alternative<SequenceFinished>(*action)) {
    ADD_FAILURE() << "sequence " << id << " did not finish";
    return {};
  }
  const SequenceFinished& finished = std::get<SequenceFinished>(*action);
  EXPECT_EQ(finished.sequence, SequenceId(id));
  EXPECT_EQ(finished.status.code(), code) << finished.status;
  return finished;
}

// A request that is refused at once is answered after all that came before it.
void EngineTest::AwaitHandled() {
  const uint64_t id = next_probe_++;
  SequenceRequest probe = Request(id);
  probe.prompt.assign(2000, 1);
  Submit(std::move(probe));
  while (true) {
    const std::optional<SchedulerAction> action = sink_.Pop();
    ASSERT_TRUE(action.has_value());
    const auto* finished = std::get_if<SequenceFinished>(&*action);
    ASSERT_NE(finished, nullptr);
    if (finished->sequence == SequenceId(id)) return;
    FAIL() << "sequence " << finished->sequence << " finished unasked: " << finished->status;
  }
}

}  // namespace millrace::testing
