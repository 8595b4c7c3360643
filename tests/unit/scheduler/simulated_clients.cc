#include "tests/unit/scheduler/simulated_clients.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace millrace::testing {
namespace {

template <typename... Args>
absl::Status Wrong(SequenceId id, const Args&... args) {
  return absl::InternalError(absl::StrCat("sequence ", id.value(), ": ", args...));
}

uint32_t PromptTokens(const SimulatedClient& client) {
  return static_cast<uint32_t>(client.request.prompt.size());
}

// The token at a position, of the prompt or of the expected output.
TokenId TokenAt(const SimulatedClient& client, uint32_t position) {
  const uint32_t prompt = PromptTokens(client);
  return position < prompt ? client.request.prompt[position] : client.outcome.tokens.at(position - prompt);
}

}  // namespace

bool IsOlder(const SimulatedClient& a, const SimulatedClient& b) {
  const auto due = [](const SimulatedClient& client) {
    return client.arrived + absl::Seconds(1) * client.request.priority;
  };
  return due(a) != due(b) ? due(a) < due(b) : a.request.id < b.request.id;
}

void SimulatedClients::OnRingReady(const RingShape& shape) {
  ring_ = shape;
  last_microbatch_ = 0;
  short_until_ = 0;
  oldest_ = oldest_prefill_ = Place();
  for (auto& [id, client] : live_) {
    if (client.request.prompt.size() + 1 > uint64_t{shape.num_blocks} * shape.block_tokens) {
      client.must_end_with = absl::StatusCode::kResourceExhausted;
    } else {
      Foresee(&client);
    }
  }
}

void SimulatedClients::OnRelease() {
  for (auto& [id, client] : live_) {
    if (Held(client) && !ring_) client.must_end_with = absl::StatusCode::kUnavailable;
  }
  holding_ = false;
}

void SimulatedClients::OnRingLost() {
  for (auto& [id, client] : live_) {
    if (!Held(client)) client.must_end_with = absl::StatusCode::kUnavailable;
  }
  in_flight_.clear();
  ring_.reset();
}

absl::StatusCode SimulatedClients::Refusal(const SequenceRequest& request, uint32_t waiting,
                                           absl::Time now) const {
  if (request.prompt.size() >= options_.context_tokens) return absl::StatusCode::kInvalidArgument;
  if (!ring_ && !holding_) return absl::StatusCode::kUnavailable;
  if (ring_ && request.prompt.size() + 1 > uint64_t{ring_->num_blocks} * ring_->block_tokens) {
    return absl::StatusCode::kResourceExhausted;
  }
  if (waiting >= options_.max_waiting_sequences) return absl::StatusCode::kResourceExhausted;
  if (request.deadline <= now) return absl::StatusCode::kDeadlineExceeded;
  return absl::StatusCode::kOk;
}

void SimulatedClients::Add(const SequenceRequest& request, uint32_t waiting, absl::Time now) {
  SimulatedClient client;
  client.request = request;
  client.arrived = now;
  client.must_end_with = Refusal(request, waiting, now);
  client.active_microbatch = last_microbatch_;
  client.most_tokens = request.max_tokens;
  if (client.must_end_with == absl::StatusCode::kOk) Foresee(&client);
  live_.emplace(request.id, std::move(client));
}

// Once cut to a small ring, its answer stays so on a larger one.
void SimulatedClients::Foresee(SimulatedClient* client) const {
  uint64_t room = options_.context_tokens;
  if (ring_) room = std::min(room, uint64_t{ring_->num_blocks} * ring_->block_tokens);
  client->most_tokens = std::min<uint64_t>(client->most_tokens, room - client->request.prompt.size());
  client->outcome =
      ToyGenerate(client->request, static_cast<uint32_t>(client->most_tokens), options_.end_tokens);
}

void SimulatedClients::Expect(SequenceId id, absl::StatusCode code) {
  const auto it = live_.find(id);
  if (it != live_.end()) it->second.must_end_with = code;
}

void SimulatedClients::ExpectStop(SequenceId id, uint32_t tokens) {
  live_.at(id).stopped_at = tokens;
}

void SimulatedClients::ExpectDeadlines(absl::Time now) {
  for (auto& [id, client] : live_) {
    if (client.request.deadline <= now) client.must_end_with = absl::StatusCode::kDeadlineExceeded;
  }
}

absl::Status SimulatedClients::OnPlan(const MicrobatchPlan& plan, absl::Time now) {
  if (!ring_) return absl::InternalError("a plan without a ring");
  if (plan.id.value() != last_microbatch_ + 1) return absl::InternalError("microbatch ids have a gap");
  if (plan.segments.empty()) return absl::InternalError("an empty microbatch");
  if (plan.rows() > options_.max_rows) return absl::InternalError(absl::StrCat(plan.rows(), " rows"));
  if (in_flight_.size() >= ring_->max_in_flight) return absl::InternalError("the window is exceeded");
  last_microbatch_ = plan.id.value();
  std::set<SequenceId> seen;
  for (const PlanSegment& segment : plan.segments) {
    if (!seen.insert(segment.sequence).second) return Wrong(segment.sequence, "twice in a microbatch");
    RETURN_IF_ERROR(OnSegment(segment, now));
    in_flight_[plan.id].push_back(segment.sequence);
  }
  for (auto& [id, client] : live_) {
    // Under static batching an urgent one that comes later waits for the next batch.
    if (client.first_planned != absl::InfiniteFuture() || options_.static_batching) continue;
    for (const PlanSegment& segment : plan.segments) {
      const SimulatedClient& planned = live_.at(segment.sequence);
      if (planned.started_by == last_microbatch_ && IsOlder(client, planned)) {
        return Wrong(segment.sequence, "overtook sequence ", id.value());
      }
    }
  }
  return absl::OkStatus();
}

absl::Status SimulatedClients::OnSegment(const PlanSegment& segment, absl::Time now) {
  const auto it = live_.find(segment.sequence);
  if (it == live_.end()) return Wrong(segment.sequence, "planned though not live");
  SimulatedClient& client = it->second;
  RETURN_IF_ERROR(CheckSegment(segment, client));
  RETURN_IF_ERROR(CheckSampling(segment, client));
  if (client.first_planned == absl::InfiniteFuture()) {
    client.first_planned = now;
    client.started_by = last_microbatch_;
    client.cached_prompt = segment.first_position;
  }
  client.planned_end = segment.first_position + static_cast<uint32_t>(segment.token_ids.size());
  client.active_microbatch = last_microbatch_;
  client.sampling_in_flight = segment.sampling.has_value();
  ++client.in_flight;
  return absl::OkStatus();
}

absl::Status SimulatedClients::CheckSegment(const PlanSegment& segment, const SimulatedClient& client) const {
  const uint32_t first = segment.first_position;
  const uint32_t end = first + static_cast<uint32_t>(segment.token_ids.size());
  if (segment.token_ids.empty()) return Wrong(segment.sequence, "an empty segment");
  // It goes on where it was, or starts again behind whole blocks that it found.
  if (first != client.planned_end && (first % ring_->block_tokens != 0 || client.in_flight > 0)) {
    return Wrong(segment.sequence, "position ", first, " after ", client.planned_end);
  }
  if (first > 0 && client.planned_end == 0 && !options_.prefix_cache) {
    return Wrong(segment.sequence, "found something though the cache is off");
  }
  if (client.request.prompt_logprobs && first >= client.prompt_reported && first > client.planned_end) {
    return Wrong(segment.sequence, "skips log probabilities of its prompt");
  }
  if (end > PromptTokens(client) + client.received) return Wrong(segment.sequence, "plans a token not known");
  for (uint32_t p = first; p < end; ++p) {
    if (segment.token_ids[p - first] != TokenAt(client, p))
      return Wrong(segment.sequence, "wrong token at ", p);
  }
  if (segment.block_ids.size() != (end + ring_->block_tokens - 1) / ring_->block_tokens) {
    return Wrong(segment.sequence, segment.block_ids.size(), " blocks for ", end, " positions");
  }
  for (BlockId block : segment.block_ids) {
    if (block >= ring_->num_blocks) return Wrong(segment.sequence, "block ", block);
  }
  const bool more_prompt = end < PromptTokens(client);
  if (segment.next_prompt_id.has_value() != more_prompt) return Wrong(segment.sequence, "next_prompt_id");
  if (more_prompt && *segment.next_prompt_id != TokenAt(client, end))
    return Wrong(segment.sequence, "next_prompt_id");
  if (segment.prompt_logprobs && segment.prompt_logprobs != client.request.prompt_logprobs) {
    return Wrong(segment.sequence, "prompt_logprobs");
  }
  return absl::OkStatus();
}

absl::Status SimulatedClients::CheckSampling(const PlanSegment& segment,
                                             const SimulatedClient& client) const {
  if (client.sampling_in_flight) return Wrong(segment.sequence, "planned while its token is in flight");
  const uint32_t end = segment.first_position + static_cast<uint32_t>(segment.token_ids.size());
  const bool last = end == PromptTokens(client) + client.received;
  if (segment.sampling.has_value() != last) return Wrong(segment.sequence, "samples at the wrong place");
  const bool history = last && client.request.sampling.needs_history();
  const uint32_t history_tokens = history ? end : 0;
  if (segment.history.size() != history_tokens)
    return Wrong(segment.sequence, "history of ", segment.history.size());
  if (segment.history_prompt_tokens != (history ? PromptTokens(client) : 0))
    return Wrong(segment.sequence, "history");
  for (uint32_t p = 0; p < history_tokens; ++p) {
    if (segment.history[p] != TokenAt(client, p)) return Wrong(segment.sequence, "history at ", p);
  }
  std::vector<TokenId> suppressed = segment.suppressed_ids;
  std::sort(suppressed.begin(), suppressed.end());
  const auto expected =
      last ? ToySuppressed(client.request, client.received, options_.end_tokens) : std::vector<TokenId>();
  if (suppressed != expected) return Wrong(segment.sequence, "suppresses the wrong ids");
  return absl::OkStatus();
}

std::vector<TokenId> SimulatedClients::TokensOf(SequenceId id) const {
  const SimulatedClient& client = live_.at(id);
  std::vector<TokenId> tokens = client.request.prompt;
  tokens.insert(tokens.end(), client.outcome.tokens.begin(), client.outcome.tokens.begin() + client.received);
  return tokens;
}

void SimulatedClients::OnLanded(MicrobatchId id) {
  for (SequenceId sequence : in_flight_.at(id)) {
    const auto it = live_.find(sequence);
    if (it == live_.end()) continue;
    --it->second.in_flight;
    it->second.active_microbatch = last_microbatch_;
  }
  in_flight_.erase(id);
}

absl::Status SimulatedClients::OnAction(const SchedulerAction& action, absl::Time now) {
  if (const auto* logprobs = std::get_if<PromptLogprobsReady>(&action)) return OnPromptLogprobs(*logprobs);
  if (const auto* token = std::get_if<TokenReady>(&action)) return OnToken(*token, now);
  return OnFinished(std::get<SequenceFinished>(action), now);
}

absl::Status SimulatedClients::OnPromptLogprobs(const PromptLogprobsReady& ready) {
  const auto it = live_.find(ready.sequence);
  if (it == live_.end()) return Wrong(ready.sequence, "prompt log probabilities after its end");
  SimulatedClient& client = it->second;
  if (ready.first_position != client.prompt_reported || ready.positions.empty() || client.received > 0) {
    return Wrong(ready.sequence, "prompt log probabilities from ", ready.first_position, ", due ",
                 client.prompt_reported);
  }
  for (const TokenLogprobs& logprobs : ready.positions) {
    const uint32_t position = client.prompt_reported++;
    if (position >= PromptTokens(client)) return Wrong(ready.sequence, "log probabilities past the prompt");
    const absl::Span<const TokenId> prompt(client.request.prompt);
    const TokenLogprobs expected =
        ToyLogprobs(prompt.first(position), prompt[position], *client.request.prompt_logprobs);
    if (logprobs.token != expected.token || logprobs.logprob != expected.logprob ||
        logprobs.top != expected.top) {
      return Wrong(ready.sequence, "wrong log probabilities of prompt position ", position);
    }
  }
  return absl::OkStatus();
}

absl::Status SimulatedClients::OnToken(const TokenReady& ready, absl::Time now) {
  const auto it = live_.find(ready.sequence);
  if (it == live_.end()) return Wrong(ready.sequence, "a token after its end");
  SimulatedClient& client = it->second;
  if (client.received >= client.outcome.tokens.size()) return Wrong(ready.sequence, "a token too many");
  if (ready.token != client.outcome.tokens[client.received]) {
    return Wrong(ready.sequence, "token ", client.received, " is ", ready.token);
  }
  if (client.request.prompt_logprobs && client.prompt_reported != PromptTokens(client)) {
    return Wrong(ready.sequence, "a token before all prompt log probabilities");
  }
  const std::optional<uint32_t> alternatives = client.request.sampling.logprobs;
  if (ready.logprobs.has_value() != alternatives.has_value())
    return Wrong(ready.sequence, "log probabilities");
  if (alternatives && ready.logprobs->top.size() != *alternatives)
    return Wrong(ready.sequence, "alternatives");
  ++client.received;
  client.sampling_in_flight = false;
  client.first_token = std::min(client.first_token, now);
  client.last_token = now;
  return absl::OkStatus();
}

absl::Status SimulatedClients::OnFinished(const SequenceFinished& finished, absl::Time now) {
  const auto it = live_.find(finished.sequence);
  if (it == live_.end()) return Wrong(finished.sequence, "ended twice");
  const SimulatedClient& client = it->second;
  if (finished.prompt_tokens != PromptTokens(client)) return Wrong(finished.sequence, "prompt usage");
  if (finished.cached_prompt_tokens != client.cached_prompt) return Wrong(finished.sequence, "cached usage");
  RETURN_IF_ERROR(CheckReason(finished, client));
  RETURN_IF_ERROR(CheckTimings(finished, client, now));
  live_.erase(it);
  ++ended_;
  return absl::OkStatus();
}

absl::Status SimulatedClients::CheckReason(const SequenceFinished& finished,
                                           const SimulatedClient& client) const {
  if (finished.status.code() != client.must_end_with) {
    return Wrong(finished.sequence, "ended with ", finished.status.ToString(), ", due code ",
                 static_cast<int>(client.must_end_with));
  }
  if (client.stopped_at && finished.status.ok()) {
    if (finished.reason != FinishReason::kStopSequence || finished.output_tokens != *client.stopped_at) {
      return Wrong(finished.sequence, "not stopped at ", *client.stopped_at);
    }
    return absl::OkStatus();
  }
  if (finished.output_tokens != client.received) return Wrong(finished.sequence, "output usage");
  if (!finished.status.ok()) return absl::OkStatus();
  if (client.received != client.outcome.tokens.size()) return Wrong(finished.sequence, "ended early");
  if (finished.reason != client.outcome.reason) return Wrong(finished.sequence, "ended for another reason");
  if (finished.matched_token != client.outcome.matched_token)
    return Wrong(finished.sequence, "matched token");
  return absl::OkStatus();
}

absl::Status SimulatedClients::CheckTimings(const SequenceFinished& finished, const SimulatedClient& client,
                                            absl::Time now) const {
  const absl::Time never = absl::InfiniteFuture();
  const absl::Duration queue = std::min(client.first_planned, now) - client.arrived;
  const absl::Duration prefill = client.first_planned == never
                                     ? absl::ZeroDuration()
                                     : std::min(client.first_token, now) - client.first_planned;
  const absl::Duration decode =
      client.first_token == never ? absl::ZeroDuration() : client.last_token - client.first_token;
  const SequenceTimings& timings = finished.timings;
  if (timings.queue != queue || timings.prefill != prefill || timings.decode != decode) {
    return Wrong(finished.sequence, "timings ", absl::FormatDuration(timings.queue), " ",
                 absl::FormatDuration(timings.prefill), " ", absl::FormatDuration(timings.decode));
  }
  return absl::OkStatus();
}

absl::Status SimulatedClients::CheckEnds() const {
  for (const auto& [id, client] : live_) {
    if (client.must_end_with != absl::StatusCode::kOk) return Wrong(id, "lives on after its end");
    if (client.stopped_at) return Wrong(id, "lives on after StopAt");
    if (client.received == client.outcome.tokens.size()) return Wrong(id, "lives on after its last token");
  }
  return absl::OkStatus();
}

absl::Status SimulatedClients::CheckProgress(const SchedulerLoad& load) {
  const auto held = [this](const auto& entry) { return Held(entry.second); };
  if (!ring_ || std::all_of(live_.begin(), live_.end(), held)) return absl::OkStatus();
  if (in_flight_.empty()) return absl::InternalError("deadlock: nothing in flight while sequences live");
  most_running_ = std::max(most_running_, load.running);
  // The oldest of those that have started: one that came later and is more urgent waits for room.
  const auto oldest = Oldest([](const SimulatedClient&) { return true; });
  if (oldest != live_.end()) RETURN_IF_ERROR(CheckTurn(oldest->first, oldest->second, &oldest_));
  // Where blocks are short, the others wait for reasons that cannot be told apart from here.
  if (load.blocks_used == load.blocks_total) short_until_ = last_microbatch_;
  if (load.preemptions > 0) return absl::OkStatus();
  for (const auto& [id, client] : live_) {
    if (client.received == 0 || client.in_flight > 0) continue;
    if (in_flight_.size() < load.slots && short_until_ < last_microbatch_) {
      return Wrong(id, "could decode, and a slot is free");
    }
    RETURN_IF_ERROR(CheckTurn(id, client, nullptr));
  }
  const auto prefilling =
      Oldest([](const SimulatedClient& client) { return client.planned_end < PromptTokens(client); });
  return prefilling == live_.end() ? absl::OkStatus()
                                   : CheckTurn(prefilling->first, prefilling->second, &oldest_prefill_);
}

SimulatedClients::Live::const_iterator SimulatedClients::Oldest(
    const std::function<bool(const SimulatedClient&)>& eligible) const {
  auto oldest = live_.end();
  for (auto it = live_.begin(); it != live_.end(); ++it) {
    if (it->second.first_planned == absl::InfiniteFuture() || !eligible(it->second)) continue;
    if (oldest == live_.end() || IsOlder(it->second, oldest->second)) oldest = it;
  }
  return oldest;
}

// A sequence that can run has its turn at the latest when every other one has had two. `place`: what it is
// the first of, if that alone gives it the right.
absl::Status SimulatedClients::CheckTurn(SequenceId id, const SimulatedClient& client, Place* place) {
  if (place != nullptr && place->id != id) *place = {id, last_microbatch_};
  uint64_t since = client.active_microbatch;
  if (place != nullptr) since = std::max(since, place->since);
  if (place != &oldest_) since = std::max(since, short_until_);
  if (client.in_flight == 0 && last_microbatch_ > since + 2 * most_running_ + 2) {
    return Wrong(id, "starves since microbatch ", since);
  }
  return absl::OkStatus();
}

}  // namespace millrace::testing
