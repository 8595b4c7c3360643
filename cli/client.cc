#include "cli/client.h"

#include <google/protobuf/util/json_util.h>
#include <unistd.h>

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/clock.h"
#include "common/transport/channels.h"
#include "common/transport/tls_probe.h"
#include "millrace/v1/rpc_status.pb.h"

namespace millrace::cli {
namespace {

const char* CodeName(grpc::StatusCode code) {
  static constexpr const char* kNames[] = {
      "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
      "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
      "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
      "DATA_LOSS", "UNAUTHENTICATED"};
  const int index = static_cast<int>(code);
  return index >= 0 && index < 17 ? kNames[index] : "UNKNOWN";
}

double Seconds(const google::protobuf::Duration& duration) {
  return static_cast<double>(duration.seconds()) + duration.nanos() * 1e-9;
}

}  // namespace

void ServerFlags::Declare(OptionSet& set) {
  set.AddString("server", &server, "HOST:PORT", "the coordinator's --listen address");
  set.AddBool("json", &json, "print JSON, one object a line");
  tls.DeclareClient(set);
}

absl::Status ServerFlags::Load() {
  const absl::StatusOr<TlsOptions> options = tls.Finish();
  if (!options.ok()) return options.status();
  if (!options->on()) return absl::OkStatus();
  SetHandshakeLog(HandshakeLog::kSilent);
  BlockStopSignals();  // gRPC starts threads for credentials already
  absl::StatusOr<SharedCredentials> loaded = Credentials::Load(*options, /*follow=*/false);
  if (!loaded.ok()) return loaded.status();
  credentials = *std::move(loaded);
  return absl::OkStatus();
}

Client::Client(const ServerFlags& flags)
    : signals_([this](int signal) { OnSignal(signal); }),
      channel(MakeControlChannel(flags.server, flags.credentials)),
      inference(v1::Inference::NewStub(channel)),
      control(v1::Control::NewStub(channel)) {}

void Client::OnSignal(int signal) {
  MutexLock lock(&mutex_);
  stopped_ = true;
  changed_.NotifyAll();
  if (cancellable_ != nullptr) return cancellable_->TryCancel();
  if (!hold_stops_) _exit(128 + signal);
}

void Client::HoldStops() {
  MutexLock lock(&mutex_);
  hold_stops_ = true;
}

bool Client::stopped() const {
  MutexLock lock(&mutex_);
  return stopped_;
}

bool Client::WaitForStop(absl::Duration timeout) {
  const absl::Time deadline = Clock::Steady().Now() + timeout;
  MutexLock lock(&mutex_);
  while (!stopped_) {
    const absl::Duration left = deadline - Clock::Steady().Now();
    if (left <= absl::ZeroDuration()) break;
    changed_.WaitFor(&mutex_, left);
  }
  return stopped_;
}

Client::CancellableCall::CancellableCall(Client& client, grpc::ClientContext& context) : client_(client) {
  MutexLock lock(&client_.mutex_);
  client_.cancellable_ = &context;
}

Client::CancellableCall::~CancellableCall() {
  MutexLock lock(&client_.mutex_);
  client_.cancellable_ = nullptr;
}

int ReportStatus(const grpc::Status& status, const ServerFlags& flags) {
  if (status.ok()) return kExitOk;
  std::string line = absl::StrCat("millrace: ", CodeName(status.error_code()), ": ", status.error_message());
  v1::RpcStatus details;
  v1::ErrorDetail detail;
  if (details.ParseFromString(status.error_details()) && details.details_size() > 0 &&
      details.details(0).UnpackTo(&detail)) {
    absl::StrAppend(&line, " [", detail.reason(), detail.retryable() ? "; may be retried" : "");
    if (detail.has_retry_after())
      absl::StrAppendFormat(&line, " after %.1f s", Seconds(detail.retry_after()));
    absl::StrAppend(&line, "]");
  } else if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    const std::string tls = ExplainFailedConnection(flags.server, flags.credentials);
    if (tls.empty()) {
      absl::StrAppend(&line, "; is a coordinator running at ", flags.server, "? (--server HOST:PORT)");
    } else {
      line = absl::StrCat("millrace: ", CodeName(status.error_code()), ": ", tls);
    }
  }
  std::fprintf(stderr, "%s\n", line.c_str());
  return kExitFailure;
}

int ReportUsage(absl::string_view command, const absl::Status& status) {
  std::fprintf(stderr, "millrace %s: %s\n", std::string(command).c_str(),
               std::string(status.message()).c_str());
  return kExitUsage;
}

std::string ToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(message, &json, options).ok()) return "{}";
  return json;
}

void GenerateFlags::Declare(OptionSet& set) {
  set.AddInt("max-tokens", &max_tokens_, 0, 1 << 30,
             "stop after so many tokens; 0: at the end of the context");
  set.AddInt("min-tokens", &min_tokens_, 0, 1 << 30, "do not stop before so many tokens");
  set.AddDouble("temperature", &temperature_, -1, 100, "0 is greedy; -1: the server's default, 1");
  set.AddInt("top-k", &top_k_, 0, 1 << 30, "keep the N most probable tokens; 0: off");
  set.AddDouble("top-p", &top_p_, 0, 1, "keep the most probable tokens with this share of the probability");
  set.AddDouble("min-p", &min_p_, 0, 1, "drop tokens less probable than this times the best");
  set.AddDouble("repetition-penalty", &repetition_penalty_, 0, 100, "1: off");
  set.AddDouble("presence-penalty", &presence_penalty_, -2, 2, "0: off");
  set.AddDouble("frequency-penalty", &frequency_penalty_, -2, 2, "0: off");
  set.AddInt("seed", &seed_, -1, INT64_MAX, "the same seed gives the same answer; -1: any");
  set.AddInt("logprobs", &logprobs_, -1, 32,
             "with --json: log probabilities with so many alternatives; -1: none");
  set.AddString("stop", &stop_, "TEXT", "stop before this text");
  set.AddString("request-id", &request_id_, "ID", "name of the request; default: made by the server");
  set.AddBool("ignore-eos", &ignore_eos_, "go on when the model ends its answer");
  set.AddInt("priority", &priority_, -100, 100,
             "the lower, the sooner; a level counts as a second of waiting");
  set.AddString("cache-salt", &cache_salt_, "TEXT",
                "share computed prompts only with requests of the same salt");
  set.AddDuration("timeout", &timeout_, "give up after so long; 0: never");
}

void GenerateFlags::Fill(v1::GenerateRequest& request) const {
  request.set_request_id(request_id_);
  v1::Sampling& sampling = *request.mutable_sampling();
  if (temperature_ >= 0) sampling.set_temperature(static_cast<float>(temperature_));
  sampling.set_top_k(static_cast<uint32_t>(top_k_));
  sampling.set_top_p(static_cast<float>(top_p_));
  sampling.set_min_p(static_cast<float>(min_p_));
  sampling.set_repetition_penalty(static_cast<float>(repetition_penalty_));
  sampling.set_presence_penalty(static_cast<float>(presence_penalty_));
  sampling.set_frequency_penalty(static_cast<float>(frequency_penalty_));
  if (seed_ >= 0) sampling.set_seed(static_cast<uint64_t>(seed_));
  v1::Stop& stop = *request.mutable_stop();
  if (max_tokens_ > 0) stop.set_max_tokens(static_cast<uint32_t>(max_tokens_));
  if (min_tokens_ > 0) stop.set_min_tokens(static_cast<uint32_t>(min_tokens_));
  if (!stop_.empty()) stop.add_strings(stop_);
  if (ignore_eos_) stop.set_ignore_eos(true);
  request.set_cache_salt(cache_salt_);
  if (priority_ != 0) request.set_priority(static_cast<int32_t>(priority_));
  if (logprobs_ >= 0) request.set_logprobs(static_cast<uint32_t>(logprobs_));
}

StreamOutcome RunGenerate(Client& client, const v1::GenerateRequest& request, absl::Duration timeout,
                          const std::function<void(const v1::GenerateEvent&)>& on_event) {
  grpc::ClientContext context;
  if (timeout > absl::ZeroDuration()) {
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
  }
  const Client::CancellableCall cancellable(client, context);
  StreamOutcome outcome;
  const auto reader = client.inference->Generate(&context, request);
  v1::GenerateEvent event;
  while (reader->Read(&event)) {
    if (event.has_tokens()) outcome.text += event.tokens().text();
    if (event.has_finished()) outcome.finished = event.finished();
    on_event(event);
  }
  outcome.status = reader->Finish();
  return outcome;
}

std::string Summary(const v1::Finished& finished) {
  const v1::Timings& timings = finished.timings();
  const double decode = Seconds(timings.decode());
  const uint32_t tokens = finished.usage().completion_tokens();
  std::string rate = "-";
  if (decode > 0 && tokens > 1) rate = absl::StrFormat("%.1f", (tokens - 1) / decode);
  return absl::StrFormat(
      "%d prompt tokens (%d cached), %d generated; first token after %.0f ms, then %s tokens/s",
      finished.usage().prompt_tokens(), finished.usage().cached_prompt_tokens(), tokens,
      (Seconds(timings.queue()) + Seconds(timings.prefill())) * 1e3, rate);
}

}  // namespace millrace::cli
