#include "coordinator/frontend/text_worker.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "coordinator/frontend/error_detail.h"
#include "coordinator/frontend/random_bits.h"

namespace millrace {
namespace {

absl::Status Stopping() {
  return RetryLater(absl::StatusCode::kUnavailable, "SHUTTING_DOWN",
                    "the server stopped before the request was done; retry with back-off");
}

v1::GenerateEvent StartedEvent(const GenerateStream& stream, const SequenceRequest& request) {
  v1::GenerateEvent event;
  v1::Started* started = event.mutable_started();
  started->set_request_id(stream.request_id());
  started->set_prompt_tokens(static_cast<uint32_t>(request.prompt.size()));
  started->set_seed(request.sampling.seed);
  return event;
}

}  // namespace

TextWorker::TextWorker(const TextWorkerOptions& options) : options_(options), inbox_(options.inbox) {}

TextWorker::~TextWorker() {
  Stop();
}

void TextWorker::Start(EnginePort* engine) {
  MILLRACE_CHECK(engine != nullptr && !thread_.joinable());
  engine_ = engine;
  thread_ = std::thread([this] {
    NameThread("text");
    Run();
  });
}

void TextWorker::Stop() {
  inbox_.Close();
  if (thread_.joinable()) thread_.join();
}

void TextWorker::Run() {
  const absl::Duration tick =
      std::clamp(options_.slow_client_timeout / 4, absl::Milliseconds(5), absl::Seconds(1));
  next_stall_check_ = Clock::Steady().Now() + tick;
  while (true) {
    TextInbox::Batch batch = inbox_.Take(tick);
    for (const SchedulerAction& action : batch.actions) {
      std::visit([this](const auto& typed) { Apply(typed); }, action);
    }
    inbox_.Done(batch.actions.size());
    for (SequenceId id : batch.end_requests) EndRequest(id);
    if (batch.job.has_value()) {
      RunJob(*std::move(batch.job), batch.closed ? Stopping() : absl::OkStatus());
    } else if (batch.closed) {
      break;
    }
    if (Clock::Steady().Now() >= next_stall_check_) {
      CancelStalledStreams();
      next_stall_check_ = Clock::Steady().Now() + tick;
    }
  }
  EndEverything();
}

void TextWorker::RunJob(TextJob job, const absl::Status& state) {
  if (auto* unary = std::get_if<UnaryJob>(&job.work)) {
    (*unary)(state);
  } else if (GenerateJob& generate = std::get<GenerateJob>(job.work); state.ok()) {
    RunGenerate(std::move(generate));
  } else {
    EndStream(*generate.stream, state);
  }
}

void TextWorker::RunGenerate(GenerateJob job) {
  streams_.push_back(job.stream);
  const absl::Status admitted = Admit(job);
  if (!admitted.ok()) EndStream(*job.stream, admitted);
}

absl::Status TextWorker::Admit(GenerateJob& job) {
  RETURN_IF_ERROR(job.stream->end_requested());
  if (options_.clock->Now() >= job.stream->deadline()) {
    return absl::DeadlineExceededError("the deadline of the call passed before its prompt was tokenized");
  }
  ASSIGN_OR_RETURN(EncodedPrompt prompt, options_.encoder->Encode(std::move(job.request.input)));
  RETURN_IF_ERROR(CheckPromptTokens(prompt.ids.size(), options_.limits));
  return Submit(job, std::move(prompt));
}

absl::Status TextWorker::Submit(GenerateJob& job, EncodedPrompt prompt) {
  CheckedRequest& checked = job.request;
  SequenceTextOptions text;
  text.min_tokens = checked.min_tokens;
  text.stop_strings = std::move(checked.stop_strings);
  text.stop_tokens.insert(checked.stop_token_ids.begin(), checked.stop_token_ids.end());
  if (!checked.ignore_eos) {
    const absl::Span<const TokenId> ends = options_.tokenizer->end_tokens();
    text.stop_tokens.insert(ends.begin(), ends.end());
  }
  text.prompt_characters = CountCharacters(prompt.text);

  SequenceRequest request;
  request.id = job.stream->id();
  request.sampling = std::move(checked.sampling);
  request.sampling.seed = checked.seed.has_value() ? *checked.seed : RandomBits();
  request.prompt_logprobs = checked.prompt_logprobs;
  const uint32_t room = options_.limits.context_tokens - static_cast<uint32_t>(prompt.ids.size());
  request.max_tokens = std::min(checked.max_tokens.value_or(room), room);
  request.min_tokens = checked.min_tokens;
  request.ignore_eos = checked.ignore_eos;
  request.stop_token_ids = std::move(checked.stop_token_ids);
  request.deadline = job.stream->deadline();
  request.priority = checked.priority;
  request.cache_salt = std::move(checked.cache_salt);
  request.prompt = std::move(prompt.ids);

  v1::GenerateEvent started = StartedEvent(*job.stream, request);
  RETURN_IF_ERROR(engine_->Submit(std::move(request)));
  job.stream->Send(std::move(started));
  const SequenceId id = job.stream->id();
  auto live = std::make_unique<Live>(
      Live{std::move(job.stream), SequenceText(options_.tokenizer, std::move(text)), job.arrived});
  live_.emplace(id, std::move(live));
  return absl::OkStatus();
}

void TextWorker::Apply(const PromptLogprobsReady& ready) {
  const auto it = live_.find(ready.sequence);
  if (it == live_.end() || !it->second->ending.ok()) return;
  absl::StatusOr<v1::GenerateEvent> event = it->second->text.OnPromptLogprobs(ready);
  if (!event.ok()) return CancelSequence(ready.sequence, *it->second, event.status());
  it->second->stream->Send(*std::move(event));
}

void TextWorker::Apply(const TokenReady& token) {
  const auto it = live_.find(token.sequence);
  if (it == live_.end() || !it->second->ending.ok()) return;
  Live& live = *it->second;
  CountToken(live);
  absl::StatusOr<SequenceText::Step> step = live.text.OnToken(token);
  if (!step.ok()) return CancelSequence(token.sequence, live, step.status());
  if (step->stop_at.has_value()) engine_->StopAt(token.sequence, *step->stop_at);
  if (step->event.has_value()) live.stream->Send(*std::move(step->event));
}

void TextWorker::CountToken(Live& live) {
  const absl::Time now = options_.clock->Now();
  if (live.last_token == absl::InfinitePast()) {
    stats_.OnFirstToken(now - live.arrived);
  } else {
    stats_.OnNextToken(now - live.last_token);
  }
  live.last_token = now;
}

void TextWorker::Apply(const SequenceFinished& finished) {
  const auto it = live_.find(finished.sequence);
  if (it == live_.end()) return;
  const std::unique_ptr<Live> live = std::move(it->second);
  live_.erase(it);
  absl::Status status = live->ending;
  // A stop string that matched completed the request, whatever became of its sequence afterwards.
  if (status.ok() && !live->text.matched()) status = finished.status;
  if (status.ok()) {
    for (v1::GenerateEvent& event : live->text.OnFinished(finished)) live->stream->Send(std::move(event));
  }
  stats_.OnFinished(finished, status, options_.clock->Now() - live->arrived);
  EndStream(*live->stream, status);
}

void TextWorker::CancelSequence(SequenceId id, Live& live, absl::Status why) {
  if (!live.ending.ok()) return;
  live.ending = why;
  engine_->Cancel(id, std::move(why));
}

void TextWorker::EndRequest(SequenceId id) {
  // Not there: still a job, which will see for itself, or ended.
  const auto it = live_.find(id);
  if (it != live_.end()) CancelSequence(id, *it->second, it->second->stream->end_requested());
}

// The id is free before the client can know of the end, so that it may use it again at once.
void TextWorker::EndStream(GenerateStream& stream, const absl::Status& status) {
  options_.registry->Remove(stream.request_id());
  stream.End(status);
}

void TextWorker::CancelStalledStreams() {
  size_t kept = 0;
  for (std::weak_ptr<GenerateStream>& weak : streams_) {
    const std::shared_ptr<GenerateStream> stream = weak.lock();
    if (stream == nullptr) continue;
    stream->CancelIfStalled(options_.slow_client_timeout);
    std::swap(streams_[kept++], weak);
  }
  streams_.resize(kept);
}

void TextWorker::EndEverything() {
  for (auto& [id, live] : live_) {
    if (live->ending.ok()) engine_->Cancel(id, Stopping());
    EndStream(*live->stream, live->ending.ok() ? Stopping() : live->ending);
  }
  live_.clear();
}

}  // namespace millrace
