#include "tests/integration/in_memory_ring.h"

#include <algorithm>

#include "common/check.h"

namespace millrace::testing {
namespace {

constexpr absl::Time kNow = absl::UnixEpoch();

StageSegment ToStageSegment(const PlanSegment& from) {
  StageSegment to;
  to.sequence = from.sequence;
  to.first_position = from.first_position;
  to.token_ids = from.token_ids;
  to.block_ids = from.block_ids;
  to.sampling = from.sampling;
  to.suppressed_ids = from.suppressed_ids;
  to.history = from.history;
  to.history_prompt_tokens = from.history_prompt_tokens;
  to.prompt_logprobs = from.prompt_logprobs;
  to.next_prompt_id = from.next_prompt_id;
  return to;
}

uint32_t FirstLayer(const std::vector<uint32_t>& layers, size_t stage) {
  uint32_t first = 0;
  for (size_t i = 0; i < stage; ++i) first += layers[i];
  return first;
}

}  // namespace

InMemoryRing::InMemoryRing(const TinyLlamaOptions& model, const InMemoryRingOptions& options)
    : options_(options),
      max_in_flight_(options.max_in_flight == 0 ? static_cast<uint32_t>(options.layers.size()) + 1
                                                : options.max_in_flight),
      bytes_(BuildTinyLlama(model)),
      returned_(max_in_flight_ + 1),
      stages_(options.layers.size()) {
  auto file = GgufFile::Parse(bytes_, "tiny");
  MILLRACE_CHECK(file.ok());
  file_ = *std::move(file);
  auto shape = ReadHyperParameters(*file_);
  MILLRACE_CHECK(shape.ok());
  shape_ = *shape;
  SchedulerOptions scheduler;
  scheduler.context_tokens = shape_.context_tokens;
  scheduler.max_rows = options_.max_rows;
  scheduler.end_tokens = {kTinyImEnd};
  scheduler.prefix_cache = options_.prefix_cache;
  scheduler_ = std::make_unique<Scheduler>(std::move(scheduler));
  scheduler_->OnRingReady(
      {static_cast<uint32_t>(stages_.size()), max_in_flight_, options_.num_blocks, options_.block_tokens},
      kNow);
  for (size_t i = 0; i < stages_.size(); ++i) MakeStage(i);
  for (Stage& stage : stages_) {
    stage.thread = std::thread([&stage] {
      const absl::Status status = stage.runner->Run();
      MILLRACE_CHECK(status.ok());
    });
  }
}

InMemoryRing::~InMemoryRing() {
  for (Stage& stage : stages_) stage.inbox->Close();
  for (Stage& stage : stages_) stage.thread.join();
}

void InMemoryRing::MakeStage(size_t index) {
  Stage& stage = stages_[index];
  StageLayout layout;
  layout.first_layer = FirstLayer(options_.layers, index);
  layout.num_layers = options_.layers[index];
  layout.first = index == 0;
  layout.last = index + 1 == stages_.size();
  auto backend = kernels::MakeCpuBackend(options_.backend);
  MILLRACE_CHECK(backend.ok());
  std::vector<std::unique_ptr<kernels::Backend>> backends;
  backends.push_back(*std::move(backend));
  stage.devices = std::make_unique<HostDevices>(std::move(backends));
  auto model =
      StageModel::Create(*file_, shape_, *stage.devices, {layout, options_.max_rows, shape_.context_tokens});
  MILLRACE_CHECK(model.ok());
  stage.model = *std::move(model);
  auto cache = KvCache::Create({layout.num_layers, options_.num_blocks, options_.block_tokens,
                                shape_.num_kv_heads, shape_.head_size, options_.kv_type});
  MILLRACE_CHECK(cache.ok());
  stage.cache = *std::move(cache);
  stage.inbox = std::make_unique<StageInbox>(2 * max_in_flight_ + 2);
  StageRunnerOptions runner;
  runner.epoch = Epoch(1);
  runner.first = layout.first;
  runner.last = layout.last;
  runner.hidden_size = shape_.hidden_size;
  runner.max_in_flight = max_in_flight_;
  runner.limits = {options_.max_rows, options_.num_blocks, options_.block_tokens, shape_.vocabulary_size,
                   shape_.context_tokens};
  stage.runner = std::make_unique<StageRunner>(
      runner, stage.model.get(), stage.cache.get(), stage.inbox.get(),
      [this, index](StageOutput output) { return Emit(index, std::move(output)); });
}

absl::Status InMemoryRing::Emit(size_t stage, StageOutput output) {
  if (stage + 1 == stages_.size()) {
    MILLRACE_CHECK(returned_.TryPush(Returned{output.microbatch, std::move(output.results)}));
    return absl::OkStatus();
  }
  HopMessage message;
  message.epoch = output.epoch;
  message.microbatch = output.microbatch;
  message.rows = output.rows;
  message.stamps = std::move(output.stamps);
  message.payload = std::move(output.activations);
  StageInput input{SteadyNanos(), std::move(message)};
  MILLRACE_CHECK(stages_[stage + 1].inbox->TryPush(input));
  return absl::OkStatus();
}

void InMemoryRing::Send(const MicrobatchPlan& plan) {
  for (Stage& stage : stages_) {
    StageBatch batch;
    batch.epoch = Epoch(1);
    batch.id = plan.id;
    for (const PlanSegment& segment : plan.segments) batch.segments.push_back(ToStageSegment(segment));
    StageInput input{SteadyNanos(), std::move(batch)};
    MILLRACE_CHECK(stage.inbox->TryPush(input));
  }
}

void InMemoryRing::Collect(Outcomes& outcomes) {
  for (SchedulerAction& action : scheduler_->TakeActions()) {
    if (auto* token = std::get_if<TokenReady>(&action)) {
      outcomes[token->sequence].tokens.push_back(token->token);
      if (token->logprobs.has_value())
        outcomes[token->sequence].logprobs.push_back(*std::move(token->logprobs));
    } else if (auto* prompt = std::get_if<PromptLogprobsReady>(&action)) {
      std::vector<TokenLogprobs>& all = outcomes[prompt->sequence].prompt_logprobs;
      MILLRACE_CHECK(prompt->first_position == all.size() + 1);
      all.insert(all.end(), prompt->positions.begin(), prompt->positions.end());
    } else {
      auto& finished = std::get<SequenceFinished>(action);
      outcomes[finished.sequence].status = finished.status;
      outcomes[finished.sequence].reason = finished.reason;
      outcomes[finished.sequence].cached_prompt_tokens = finished.cached_prompt_tokens;
    }
  }
}

Outcomes InMemoryRing::Run(std::vector<Arrival> arrivals) {
  Outcomes outcomes;
  uint64_t sent = 0;
  size_t arrived = 0;
  while (arrived < arrivals.size() || !scheduler_->idle()) {
    // An idle ring sends nothing more: what is to come, comes now.
    while (arrived < arrivals.size() &&
           (arrivals[arrived].after_microbatches <= sent || scheduler_->idle())) {
      scheduler_->Add(std::move(arrivals[arrived++].request), kNow);
    }
    while (const std::optional<MicrobatchPlan> plan = scheduler_->PlanNext(kNow)) {
      Send(*plan);
      ++sent;
      most_in_flight_ = std::max(most_in_flight_, scheduler_->load().in_flight);
    }
    Collect(outcomes);
    if (scheduler_->load().in_flight == 0) continue;
    std::optional<Returned> returned = returned_.Pop(absl::Seconds(120));
    MILLRACE_CHECK(returned.has_value());
    MILLRACE_CHECK(scheduler_->OnResult(returned->id, std::move(returned->results), kNow).ok());
  }
  Collect(outcomes);
  return outcomes;
}

}  // namespace millrace::testing
