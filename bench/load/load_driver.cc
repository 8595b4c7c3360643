#include "bench/load/load_driver.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "common/transport/channels.h"

namespace millrace::bench {
namespace {

bool Never() {
  return false;
}

}  // namespace

LoadDriver::LoadDriver(std::shared_ptr<grpc::Channel> channel, LoadOptions options)
    : options_(std::move(options)),
      workload_(options_.workload),
      client_(std::move(channel),
              {[this](const TokensArrived& arrived) {
                 if (arrived.record.tokens == 0) ++first_tokens_;
                 if (window_.has_value()) window_->OnTokens(arrived);
               },
               [this](const StreamRecord& record, const grpc::Status& status) { OnDone(record, status); }}) {}

void LoadDriver::Send() {
  client_.Start(workload_.Next());
  ++sent_;
}

void LoadDriver::OnDone(const StreamRecord& record, const grpc::Status& status) {
  if (window_.has_value()) window_->OnDone(record, Clock::Steady().Now(), status.ok());
  last_output_ = record.token_ids;
  if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED && options_.mode == LoadMode::kPoisson) {
    ++refused_;
  } else if (!status.ok() && status.error_code() != grpc::StatusCode::CANCELLED) {
    failure_.Update(FromPeerStatus(status));
  }
  if (replace_ && failure_.ok()) Send();
}

absl::Status LoadDriver::PollUntil(absl::Time until, const std::function<bool()>& done) {
  client_.Poll(std::min(until, deadline_), [&] { return done() || !failure_.ok(); });
  RETURN_IF_ERROR(failure_);
  if (Clock::Steady().Now() < deadline_) return absl::OkStatus();
  return absl::DeadlineExceededError(
      absl::StrCat("not done after ", absl::FormatDuration(options_.limit), " (--limit)"));
}

absl::Status LoadDriver::ArriveUntil(absl::Time until) {
  while (next_arrival_ < until) {
    RETURN_IF_ERROR(PollUntil(next_arrival_, Never));
    Send();
    next_arrival_ += absl::Seconds(workload_.NextGap(options_.rate));
  }
  return PollUntil(until, Never);
}

absl::Status LoadDriver::OpenWindow(uint32_t sequences) {
  ASSIGN_OR_RETURN(v1::GetLoadResponse load, client_.Load());
  window_.emplace(Clock::Steady().Now(), std::move(load), sequences);
  return absl::OkStatus();
}

absl::Status LoadDriver::CloseWindow() {
  const absl::Time end = Clock::Steady().Now();
  ASSIGN_OR_RETURN(v1::GetLoadResponse load, client_.Load());
  window_->Close(end, std::move(load));
  windows_.push_back(window_->ToJson());
  window_.reset();
  return absl::OkStatus();
}

absl::Status LoadDriver::Measure(const std::function<absl::Status(absl::Time until)>& run) {
  for (uint32_t i = 0; i < options_.windows; ++i) {
    RETURN_IF_ERROR(OpenWindow());
    RETURN_IF_ERROR(run(Clock::Steady().Now() + options_.window));
    RETURN_IF_ERROR(CloseWindow());
  }
  return absl::OkStatus();
}

absl::Status LoadDriver::RunSteady() {
  replace_ = true;
  for (uint32_t i = 0; i < options_.sequences; ++i) Send();
  RETURN_IF_ERROR(PollUntil(deadline_, [&] { return first_tokens_ >= options_.sequences; }));
  const auto run = [&](absl::Time until) { return PollUntil(until, Never); };
  RETURN_IF_ERROR(run(Clock::Steady().Now() + options_.warmup));
  RETURN_IF_ERROR(Measure(run));
  replace_ = false;
  return absl::OkStatus();
}

absl::Status LoadDriver::RunPoisson() {
  next_arrival_ = Clock::Steady().Now();
  RETURN_IF_ERROR(ArriveUntil(next_arrival_ + options_.warmup));
  return Measure([&](absl::Time until) { return ArriveUntil(until); });
}

absl::Status LoadDriver::RunOneShot() {
  for (uint32_t round = 0; round < options_.windows; ++round) {
    RETURN_IF_ERROR(OpenWindow(options_.sequences));
    for (uint32_t i = 0; i < options_.sequences; ++i) Send();
    RETURN_IF_ERROR(PollUntil(deadline_, [&] { return client_.live() == 0; }));
    RETURN_IF_ERROR(CloseWindow());
  }
  return absl::OkStatus();
}

absl::Status LoadDriver::RunRecompute() {
  RETURN_IF_ERROR(OpenWindow());
  v1::GenerateRequest request = workload_.Next();
  const uint32_t tokens = request.stop().max_tokens();
  request.mutable_stop()->set_max_tokens(1);
  for (uint32_t i = 0; i < tokens; ++i) {
    client_.Start(request);
    ++sent_;
    RETURN_IF_ERROR(PollUntil(deadline_, [&] { return client_.live() == 0; }));
    for (uint32_t id : last_output_) request.mutable_token_ids()->add_ids(id);
  }
  return CloseWindow();
}

absl::StatusOr<nlohmann::json> LoadDriver::Run() {
  deadline_ = Clock::Steady().Now() + options_.limit;
  absl::Status status;
  switch (options_.mode) {
    case LoadMode::kSteady:
      status = RunSteady();
      break;
    case LoadMode::kPoisson:
      status = RunPoisson();
      break;
    case LoadMode::kOneShot:
      status = RunOneShot();
      break;
    case LoadMode::kRecompute:
      status = RunRecompute();
      break;
  }
  replace_ = false;
  RETURN_IF_ERROR(status);
  return nlohmann::json{{"sent", sent_}, {"refused", refused_}, {"windows", std::move(windows_)}};
}

}  // namespace millrace::bench
