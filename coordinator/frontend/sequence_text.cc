#include "coordinator/frontend/sequence_text.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/frontend/proto_time.h"

namespace millrace {
namespace {

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kEndOfSequence:
      return v1::FINISH_REASON_END_OF_SEQUENCE;
    case FinishReason::kStopSequence:
      return v1::FINISH_REASON_STOP_SEQUENCE;
    case FinishReason::kStopToken:
      return v1::FINISH_REASON_STOP_TOKEN;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

}  // namespace

SequenceText::SequenceText(const Tokenizer* tokenizer, SequenceTextOptions options)
    : tokenizer_(tokenizer), options_(std::move(options)), detokenizer_(tokenizer, options_.stop_strings) {}

absl::StatusOr<SequenceText::Step> SequenceText::OnToken(const TokenReady& token) {
  Step step;
  if (matched()) return step;
  if (token.token >= tokenizer_->vocabulary_size()) {
    return absl::InternalError(absl::StrCat("the pipeline sampled token ", token.token,
                                            ", but the vocabulary has ", tokenizer_->vocabulary_size()));
  }
  HeldToken held{token.token, std::nullopt};
  if (token.logprobs.has_value()) {
    ASSIGN_OR_RETURN(held.logprobs, ToProto(*token.logprobs));
  }
  held_.push_back(std::move(held));
  ++generated_;
  // Such a token is the last one: it waits, with what is held before it, for SequenceFinished.
  if (options_.stop_tokens.contains(token.token)) return step;

  StreamDetokenizer::Step text = detokenizer_.Push(token.token, generated_ >= options_.min_tokens);
  if (text.matched_stop.has_value()) {
    matched_stop_ = *text.matched_stop;
    step.stop_at = generated_;
    text.released_tokens = held_.size();
  }
  step.event = Release(text.released_tokens, std::move(text.text));
  return step;
}

absl::StatusOr<v1::GenerateEvent> SequenceText::OnPromptLogprobs(const PromptLogprobsReady& ready) const {
  v1::GenerateEvent event;
  v1::PromptLogprobs* prompt = event.mutable_prompt_logprobs();
  prompt->set_first_position(ready.first_position);
  for (const TokenLogprobs& position : ready.positions) {
    ASSIGN_OR_RETURN(*prompt->add_positions(), ToProto(position));
  }
  return event;
}

std::vector<v1::GenerateEvent> SequenceText::OnFinished(const SequenceFinished& finished) {
  std::vector<v1::GenerateEvent> events;
  if (!matched()) {
    std::optional<v1::GenerateEvent> rest = Release(held_.size(), detokenizer_.Flush().text);
    if (rest.has_value()) events.push_back(*std::move(rest));
  }
  v1::GenerateEvent last;
  *last.mutable_finished() = Summary(finished);
  events.push_back(std::move(last));
  return events;
}

absl::StatusOr<v1::PositionLogprobs> SequenceText::ToProto(const TokenLogprobs& logprobs) const {
  v1::PositionLogprobs position;
  const auto fill = [this](TokenId id, float logprob, v1::TokenLogprob* out) {
    if (id >= tokenizer_->vocabulary_size()) {
      return absl::InternalError(absl::StrCat("the pipeline reported a log probability of token ", id,
                                              ", but the vocabulary has ", tokenizer_->vocabulary_size()));
    }
    out->set_token_id(id);
    out->set_logprob(logprob);
    out->set_token(tokenizer_->TokenBytes(id));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(fill(logprobs.token, logprobs.logprob, position.mutable_chosen()));
  for (const auto& [id, logprob] : logprobs.top) RETURN_IF_ERROR(fill(id, logprob, position.add_top()));
  return position;
}

std::optional<v1::GenerateEvent> SequenceText::Release(size_t tokens, std::string text) {
  if (tokens == 0 && text.empty()) return std::nullopt;
  v1::GenerateEvent event;
  v1::TokenDelta* delta = event.mutable_tokens();
  for (; tokens > 0 && !held_.empty(); --tokens) {
    delta->add_token_ids(held_.front().id);
    if (held_.front().logprobs.has_value()) *delta->add_logprobs() = *std::move(held_.front().logprobs);
    held_.pop_front();
  }
  characters_ += CountCharacters(text);
  delta->set_text(std::move(text));
  return event;
}

v1::Finished SequenceText::Summary(const SequenceFinished& finished) const {
  v1::Finished summary;
  if (matched()) {
    summary.set_reason(v1::FINISH_REASON_STOP_SEQUENCE);
    summary.mutable_matched_stop()->set_text(options_.stop_strings[*matched_stop_]);
  } else {
    summary.set_reason(millrace::ToProto(finished.reason));
    if (finished.matched_token.has_value())
      summary.mutable_matched_stop()->set_token_id(*finished.matched_token);
  }
  v1::Usage* usage = summary.mutable_usage();
  usage->set_prompt_tokens(finished.prompt_tokens);
  usage->set_cached_prompt_tokens(finished.cached_prompt_tokens);
  usage->set_completion_tokens(matched() ? generated_ : finished.output_tokens);
  usage->set_prompt_characters(options_.prompt_characters);
  usage->set_completion_characters(characters_);
  SetDuration(finished.timings.queue, summary.mutable_timings()->mutable_queue());
  SetDuration(finished.timings.prefill, summary.mutable_timings()->mutable_prefill());
  SetDuration(finished.timings.decode, summary.mutable_timings()->mutable_decode());
  for (const std::string& stage : finished.numeric_classes) summary.add_numeric_classes(stage);
  return summary;
}

}  // namespace millrace
