#include "coordinator/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/error_reason.h"
#include "common/status_macros.h"
#include "coordinator/scheduler/scheduler_impl.h"

namespace millrace {
namespace {

SequenceView ViewOf(const Sequence& sequence) {
  SequenceView view;
  view.tokens = sequence.tokens();
  view.planned = sequence.planned();
  view.blocks = static_cast<uint32_t>(sequence.blocks().size());
  view.generating = sequence.output_tokens() > 0;
  view.in_flight = sequence.in_flight() > 0;
  view.cached = sequence.cached();
  view.ready_order = sequence.ready_order();
  return view;
}

}  // namespace

// Why a request cannot be taken, or OK.
absl::Status Scheduler::Impl::Refusal(const SequenceRequest& request, absl::Time now) const {
  const size_t prompt = request.prompt.size();
  if (prompt == 0) return absl::InvalidArgumentError("the prompt is empty; give at least one token");
  if (prompt >= options.context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("the prompt has ", prompt,
                                                   " tokens; with one more it must fit the context of ",
                                                   options.context_tokens, " tokens: shorten it"));
  }
  if (!ring && !holding) {
    return absl::UnavailableError("no pipeline is running; retry once the server reports SERVING");
  }
  RETURN_IF_ERROR(RefusalByRoom(prompt));
  if (num_waiting() >= options.max_waiting_sequences) {
    const absl::Duration pause = drain.RetryAfter(static_cast<uint32_t>(num_waiting()), now);
    return millrace::RetryAfter(
        RetryLater(absl::StatusCode::kResourceExhausted, "QUEUE_FULL",
                   absl::StrCat(num_waiting(), " requests are waiting, limit ", options.max_waiting_sequences,
                                "; retry in about ",
                                absl::FormatDuration(absl::Ceil(pause, absl::Milliseconds(100))))),
        pause);
  }
  if (request.deadline <= now)
    return absl::DeadlineExceededError("the deadline had passed when the request arrived");
  return absl::OkStatus();
}

void Scheduler::Impl::End(Sequence* sequence, const absl::Status& status, const SequenceEnd& end,
                          uint32_t output_tokens, absl::Time now) {
  actions.push_back(sequence->Finish(status, end, output_tokens, now));
  ++(status.ok() ? totals.finished : totals.failed);
  blocks.Release(sequence);
  if (sequence->running()) {
    running.erase(sequence->order());
  } else if (waiting.erase(sequence->order()) == 0) {
    held.erase(sequence->order());
  }
  deadlines.erase({sequence->deadline(), sequence->id()});
  live.erase(SequenceId(sequence->id()));
}

void Scheduler::Impl::ApplyResult(SequenceResult result, absl::Time now) {
  Sequence* sequence = Find(result.sequence);
  if (sequence == nullptr) return;
  if (!result.prompt_logprobs.empty()) {
    auto ready =
        sequence->TakePromptLogprobs(result.first_prompt_position, std::move(result.prompt_logprobs));
    if (ready) actions.push_back(*std::move(ready));
  }
  if (result.token) ApplyToken(sequence, std::move(result), now);
}

void Scheduler::Impl::ApplyToken(Sequence* sequence, SequenceResult result, absl::Time now) {
  if (sequence->output_tokens() == 0) totals.prompt_tokens += sequence->prompt_tokens();
  ++totals.output_tokens;
  const auto end = sequence->AppendToken(*result.token, options.end_tokens, next_ready_order++, now);
  actions.push_back(TokenReady{sequence->id(), *result.token, std::move(result.logprobs)});
  if (end) End(sequence, absl::OkStatus(), *end, sequence->output_tokens(), now);
}

uint32_t Scheduler::Impl::Slots() const {
  BatchFeatures decodes;
  if (running.size() <= options.max_rows) {
    for (const auto& [order, sequence] : running) {
      if (!ViewOf(*sequence).decoding()) {
        decodes = {};
        break;
      }
      decodes += BatchFeatures::Decode(sequence->tokens());
    }
  }
  return timing.Slots(ring->max_in_flight, decodes);
}

BatchSnapshot Scheduler::Impl::Snapshot() const {
  BatchSnapshot snapshot;
  snapshot.max_rows = options.max_rows;
  snapshot.num_stages = ring->num_stages;
  snapshot.slots = Slots();
  snapshot.in_flight = static_cast<uint32_t>(in_flight.size());
  snapshot.max_running_sequences = options.max_running_sequences;
  snapshot.block_tokens = ring->block_tokens;
  snapshot.num_blocks = blocks.pool().num_blocks();
  snapshot.free_blocks = blocks.pool().num_free();
  snapshot.prefill_turn = prefill_turn;
  snapshot.decode_carry = decode_carry;
  snapshot.costs = timing.costs();
  snapshot.inter_token_goal = absl::ToDoubleSeconds(options.inter_token_goal);
  snapshot.num_running = running.size();
  snapshot.sequences.reserve(running.size() + std::min<size_t>(waiting.size(), options.max_rows));
  for (const auto& [order, sequence] : running) snapshot.sequences.push_back(ViewOf(*sequence));
  CountFreedBlocks(&snapshot);
  AddWaiting(&snapshot);
  return snapshot;
}

// What waits at this moment, and no more than may run at once.
void Scheduler::Impl::OpenBatch() {
  uint32_t members = 0;
  for (const auto& [number, sequence] : waiting) {
    if (members++ == options.max_running_sequences) break;
    sequence->JoinBatch();
  }
}

// Of the youngest ones, until they would free more than a microbatch can use: each row needs at most one
// block.
void Scheduler::Impl::CountFreedBlocks(BatchSnapshot* snapshot) const {
  ReleasePreview preview(blocks.pool());
  uint64_t free = blocks.pool().num_free();
  size_t i = running.size();
  for (auto it = running.rbegin(); it != running.rend() && free < options.max_rows; ++it) {
    SequenceView& view = snapshot->sequences[--i];
    view.freed_blocks = preview.Release(it->second->blocks());
    free += view.freed_blocks;
  }
}

// Those that might be admitted now: each takes a row at least, the first that lacks blocks keeps back the
// others, and what is pending beyond two chunks for each stage changes nothing.
void Scheduler::Impl::AddWaiting(BatchSnapshot* snapshot) const {
  const size_t room =
      options.max_running_sequences - std::min<size_t>(options.max_running_sequences, running.size());
  const size_t most = std::min<size_t>(room, options.max_rows);
  const uint64_t enough_rows = uint64_t{2} * options.max_rows * ring->num_stages;
  uint64_t blocks_needed = 0;
  uint64_t rows = 0;
  for (auto it = waiting.begin(); it != waiting.end(); ++it) {
    if (snapshot->sequences.size() - running.size() >= most || rows >= enough_rows) return;
    if (blocks_needed > blocks.pool().num_free()) return;
    if (options.static_batching && !it->second->in_batch()) return;
    SequenceView view = ViewOf(*it->second);
    view.generating = false;  // its tokens are a prompt to it when it starts again
    view.blocks = blocks.CountCached(it->second, &view.idle_blocks);
    view.cached = view.planned = view.blocks * ring->block_tokens;
    snapshot->sequences.push_back(view);
    rows += view.remaining();
    blocks_needed += blocks.BlocksFor(view.tokens + 1) - view.blocks + view.idle_blocks;
  }
}

void Scheduler::Impl::PreemptYoungest() {
  Sequence* sequence = running.rbegin()->second;
  blocks.Release(sequence);
  sequence->Preempt(next_change++);
  waiting.insert(running.extract(std::prev(running.end())));
  ++totals.preemptions;
}

Sequence* Scheduler::Impl::AdmitOldest(absl::Time now) {
  Sequence* sequence = waiting.begin()->second;
  if (!sequence->preempted()) drain.OnAdmitted(now);
  blocks.Start(sequence, next_change++);
  if (options.prefix_cache && !sequence->preempted() && !sequence->wants_prompt_logprobs()) {
    totals.prefix_cache_queries += sequence->tokens();
    totals.prefix_cache_hits += sequence->cached();
  }
  running.insert(waiting.extract(waiting.begin()));
  return sequence;
}

MicrobatchPlan Scheduler::Impl::BuildPlan(const std::vector<BatchPick>& picks,
                                          const std::vector<Sequence*>& by_index, absl::Time now) {
  MicrobatchPlan plan;
  plan.id = MicrobatchId(next_microbatch++);
  InFlight record;
  record.id = plan.id;
  for (const BatchPick& pick : picks) {
    Sequence* sequence = by_index[pick.index];
    blocks.Grow(sequence, pick.rows);
    plan.segments.push_back(sequence->PlanRows(pick.rows, options.end_tokens, now));
    record.sequences.push_back(sequence->id());
  }
  // Only now, as segments of one microbatch do not wait for each other.
  for (const BatchPick& pick : picks) blocks.NameFull(by_index[pick.index]);
  record.expected = ExpectedResults(plan);
  record.features = FeaturesOf(plan);
  record.planned = now;
  timing.OnPlanned(record.features);
  in_flight.push_back(std::move(record));
  return plan;
}

Scheduler::Scheduler(SchedulerOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {
  MILLRACE_CHECK(impl_->options.max_running_sequences > 0);
  MILLRACE_CHECK(impl_->options.max_waiting_sequences > 0);
  MILLRACE_CHECK(impl_->options.max_rows > 0);
}

Scheduler::~Scheduler() = default;

void Scheduler::OnRingReady(const RingShape& shape, absl::Time now) {
  MILLRACE_CHECK(!impl_->ring && impl_->live.size() == impl_->held.size());
  MILLRACE_CHECK(shape.num_stages > 0 && shape.max_in_flight > 0 && shape.block_tokens > 0);
  impl_->ring = shape;
  impl_->timing = RingTiming(shape.num_stages, shape.stage_costs, shape.hop_seconds);
  impl_->blocks = SequenceBlocks(
      {shape.num_blocks, shape.block_tokens, impl_->options.prefix_cache, impl_->options.block_hash_key});
  impl_->next_microbatch = 1;
  impl_->prefill_turn = false;
  impl_->decode_carry = 0;
  impl_->FitHeldToRing(now);
}

void Scheduler::OnRingLost(const absl::Status& why, absl::Time now) {
  MILLRACE_CHECK(!why.ok());
  while (!impl_->running.empty()) impl_->Fail(impl_->running.begin()->second, why, now);
  while (!impl_->waiting.empty()) impl_->Fail(impl_->waiting.begin()->second, why, now);
  impl_->in_flight.clear();
  impl_->blocks = SequenceBlocks();
  impl_->ring.reset();
}

void Scheduler::Add(SequenceRequest request, absl::Time now) {
  MILLRACE_CHECK(impl_->Find(request.id) == nullptr);
  const absl::Status refusal = impl_->Refusal(request, now);
  const uint32_t prompt = static_cast<uint32_t>(request.prompt.size());
  if (!refusal.ok()) {
    SequenceFinished finished;
    finished.sequence = request.id;
    finished.status = refusal;
    finished.prompt_tokens = prompt;
    impl_->actions.push_back(std::move(finished));
    ++impl_->totals.failed;
    return;
  }
  const uint32_t max_tokens = std::clamp(request.max_tokens, 1u, impl_->TokenLimit() - prompt);
  if (request.deadline != absl::InfiniteFuture()) impl_->deadlines.insert({request.deadline, request.id});
  const SequenceId id = request.id;
  auto sequence = std::make_unique<Sequence>(std::move(request), max_tokens, impl_->next_change++, now);
  if (impl_->num_waiting() == 0) impl_->drain.OnFirstQueued(now);
  (impl_->holding ? impl_->held : impl_->waiting).emplace(sequence->order(), sequence.get());
  impl_->live.emplace(id, std::move(sequence));
}

void Scheduler::Cancel(SequenceId id, const absl::Status& why, absl::Time now) {
  MILLRACE_CHECK(!why.ok());
  if (Sequence* sequence = impl_->Find(id)) impl_->Fail(sequence, why, now);
}

void Scheduler::StopAt(SequenceId id, uint32_t output_tokens, absl::Time now) {
  Sequence* sequence = impl_->Find(id);
  if (sequence == nullptr) return;
  impl_->End(sequence, absl::OkStatus(), {FinishReason::kStopSequence, std::nullopt},
             std::min(output_tokens, sequence->output_tokens()), now);
}

absl::Status Scheduler::OnResult(MicrobatchId id, std::vector<SequenceResult> results, absl::Time now) {
  auto& in_flight = impl_->in_flight;
  if (in_flight.empty() || in_flight.front().id != id) {
    return absl::InternalError(absl::StrCat("microbatch ", id.value(), " came back; the next one due is ",
                                            in_flight.empty() ? 0 : in_flight.front().id.value(),
                                            " (0: none)"));
  }
  RETURN_IF_ERROR(CheckResults(id, in_flight.front().expected, results));
  for (SequenceId sequence_id : in_flight.front().sequences) {
    if (Sequence* sequence = impl_->Find(sequence_id)) sequence->Landed();
  }
  in_flight.pop_front();
  for (SequenceResult& result : results) impl_->ApplyResult(std::move(result), now);
  return absl::OkStatus();
}

void Scheduler::OnStageTimes(MicrobatchId id, absl::Span<const StageTimes> stages, absl::Time now) {
  const auto& in_flight = impl_->in_flight;
  if (in_flight.empty() || in_flight.front().id != id) return;
  const Impl::InFlight& record = in_flight.front();
  if (record.canary) return;
  impl_->timing.OnReturned(record.features, absl::ToDoubleSeconds(now - record.planned), stages);
}

void Scheduler::Tick(absl::Time now) {
  auto& deadlines = impl_->deadlines;
  while (!deadlines.empty() && deadlines.begin()->first <= now) {
    Sequence* sequence = impl_->Find(deadlines.begin()->second);
    const uint32_t generated = sequence->output_tokens();
    impl_->Fail(sequence,
                absl::DeadlineExceededError(
                    absl::StrCat("the deadline passed after ", generated, " generated tokens")),
                now);
  }
}

absl::Time Scheduler::NextDeadline() const {
  return impl_->deadlines.empty() ? absl::InfiniteFuture() : impl_->deadlines.begin()->first;
}

std::optional<MicrobatchPlan> Scheduler::PlanNext(absl::Time now) {
  if (!impl_->ring || (impl_->running.empty() && impl_->waiting.empty())) return std::nullopt;
  if (impl_->in_flight.size() >= impl_->Slots()) return std::nullopt;
  if (impl_->options.static_batching && impl_->running.empty()) impl_->OpenBatch();
  const BatchSnapshot snapshot = impl_->Snapshot();
  const BatchDecision decision = DecideBatch(snapshot);
  impl_->decode_carry = decision.decode_carry;
  for (size_t i = 0; i < decision.num_preempted; ++i) impl_->PreemptYoungest();
  // As in the snapshot: an admitted one comes last, though it may be older than others.
  std::vector<Sequence*> by_index;
  by_index.reserve(impl_->running.size() + decision.num_admitted);
  for (const auto& [order, sequence] : impl_->running) by_index.push_back(sequence);
  for (size_t i = 0; i < decision.num_admitted; ++i) by_index.push_back(impl_->AdmitOldest(now));
  if (decision.picks.empty()) return std::nullopt;
  impl_->prefill_turn = !decision.has_prefill;
  return impl_->BuildPlan(decision.picks, by_index, now);
}

std::vector<SchedulerAction> Scheduler::TakeActions() {
  return std::exchange(impl_->actions, {});
}

SchedulerLoad Scheduler::load() const {
  SchedulerLoad load = impl_->totals;
  load.running = static_cast<uint32_t>(impl_->running.size());
  load.waiting = static_cast<uint32_t>(impl_->num_waiting());
  load.held = static_cast<uint32_t>(impl_->held.size());
  load.in_flight = static_cast<uint32_t>(impl_->in_flight.size()) - (canary_in_flight() ? 1 : 0);
  load.blocks_total = impl_->blocks.pool().num_blocks();
  load.blocks_used = impl_->blocks.pool().num_used();
  load.blocks_cached = impl_->blocks.pool().num_cached();
  load.block_tokens = impl_->ring ? impl_->ring->block_tokens : 0;
  load.slots = impl_->ring ? impl_->Slots() : 0;
  load.hop_seconds = impl_->ring ? impl_->timing.hop_seconds() : 0;
  if (impl_->ring) {
    for (const StageCostModel& model : impl_->timing.costs()) {
      if (model.error().has_value()) load.cost_errors.push_back(*model.error());
    }
  }
  return load;
}

absl::Duration Scheduler::RetryAfter(absl::Time now) const {
  return impl_->drain.RetryAfter(static_cast<uint32_t>(impl_->num_waiting()), now);
}

bool Scheduler::idle() const {
  return impl_->live.empty() && impl_->in_flight.empty();
}

}  // namespace millrace
