#include "coordinator/frontend/control_service.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/transport/numeric_messages.h"
#include "common/transport/profile_messages.h"
#include "coordinator/frontend/error_detail.h"
#include "coordinator/frontend/generate_stream.h"
#include "coordinator/frontend/proto_time.h"
#include "coordinator/frontend/rpc_message.h"
#include "coordinator/frontend/trace_stream.h"

namespace millrace {
namespace {

constexpr uint32_t kApiRevision = 4;
constexpr double kMaxTraceSeconds = 60;
constexpr int kMaxTraces = 4;
constexpr absl::Duration kDefaultDrainWait = absl::Seconds(60);
constexpr absl::Duration kMaxDrainWait = absl::Hours(1);
constexpr int kMaxDrains = 64;
constexpr size_t kMaxControlBytes = size_t{1} << 20;

v1::GetServerInfoResponse::State ToProto(PipelineState state) {
  switch (state) {
    case PipelineState::kWaitingForWorkers:
      return v1::GetServerInfoResponse::STATE_WAITING_FOR_WORKERS;
    case PipelineState::kLoading:
      return v1::GetServerInfoResponse::STATE_LOADING;
    case PipelineState::kServing:
      return v1::GetServerInfoResponse::STATE_SERVING;
    case PipelineState::kStopping:
      return v1::GetServerInfoResponse::STATE_STOPPING;
  }
  return v1::GetServerInfoResponse::STATE_UNSPECIFIED;
}

void FillIdle(const IdleTime& from, v1::IdleTime* idle) {
  SetDuration(from[IdleCause::kNoWork], idle->mutable_no_work());
  SetDuration(from[IdleCause::kBackPressured], idle->mutable_back_pressured());
  SetDuration(from[IdleCause::kCommunication], idle->mutable_communication());
  SetDuration(from[IdleCause::kTooFewMicrobatches], idle->mutable_too_few_microbatches());
  SetDuration(from[IdleCause::kImbalance], idle->mutable_imbalance());
  SetDuration(from[IdleCause::kStarved], idle->mutable_starved());
}

absl::Duration MeanWay(const StageUse& use) {
  return use.microbatches == 0 ? absl::ZeroDuration()
                               : use.on_the_way / static_cast<int64_t>(use.microbatches);
}

void FillWindow(const StageUse& from, v1::StageWindow* window) {
  SetDuration(from.busy, window->mutable_busy());
  SetDuration(from.preempted, window->mutable_preempted());
  FillIdle(from.idle, window->mutable_idle());
  window->set_bubble_ratio(from.BubbleRatio());
  window->set_microbatches(from.microbatches);
  window->set_rows(from.rows);
  SetDuration(MeanWay(from), window->mutable_mean_way());
}

void FillStage(const StageSnapshot& stage, absl::Duration active, v1::StageLoad* load) {
  load->set_worker(stage.worker);
  load->set_first_layer(stage.first_layer);
  load->set_num_layers(stage.num_layers);
  load->set_weight_bytes(stage.weight_bytes);
  load->set_kv_bytes(stage.kv_bytes);
  load->set_activation_bytes(stage.activation_bytes);
  for (const ShardMemory& shard : stage.shards) {
    v1::ShardLoad* to = load->add_shards();
    to->set_weight_bytes(shard.weight_bytes);
    to->set_kv_bytes(shard.kv_bytes);
    to->set_activation_bytes(shard.activation_bytes);
  }
  load->set_numeric_class(stage.numeric_class);
  load->set_predicted_seconds(stage.predicted_seconds);
  load->set_hop(stage.hop);
  load->set_kernels(stage.kernels);
  load->set_threads(stage.threads);
  SetDuration(stage.total.busy, load->mutable_busy());
  load->set_microbatches(stage.total.microbatches);
  load->set_rows(stage.total.rows);
  load->set_busy_share(active > absl::ZeroDuration() ? absl::FDivDuration(stage.total.busy, active) : 0.0);
  SetDuration(stage.total.preempted, load->mutable_preempted());
  FillIdle(stage.total.idle, load->mutable_idle());
  load->set_bubble_ratio(stage.total.BubbleRatio());
  FillWindow(stage.window, load->mutable_window());
  SetDuration(MeanWay(stage.total), load->mutable_mean_way());
  load->set_activation_bytes_sent(stage.activation_bytes_sent);
}

void FillScheduler(const SchedulerLoad& from, v1::GetLoadResponse* load) {
  load->set_running_requests(from.running);
  load->set_queued_requests(from.waiting);
  load->set_microbatches_in_flight(from.in_flight);
  load->set_kv_blocks_total(from.blocks_total);
  load->set_kv_blocks_used(from.blocks_used);
  load->set_kv_block_tokens(from.block_tokens);
  load->set_prompt_tokens_total(from.prompt_tokens);
  load->set_generated_tokens_total(from.output_tokens);
  load->set_requests_finished_total(from.finished);
  load->set_requests_failed_total(from.failed);
  load->set_preemptions_total(from.preemptions);
  load->set_slots(from.slots);
  load->set_prefix_cache_queries_total(from.prefix_cache_queries);
  load->set_prefix_cache_hits_total(from.prefix_cache_hits);
  load->set_kv_blocks_cached(from.blocks_cached);
}

// Ends a Trace call at once.
class RefusedTrace final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  explicit RefusedTrace(const absl::Status& why) { Finish(ToGrpcStatus(why)); }
  void OnDone() override { delete this; }
};

// Answers a call whose request has no fields: there is nothing in it to parse, and what a newer client adds
// is ignored.
template <typename Response>
grpc::ServerUnaryReactor* AnswerAtOnce(grpc::CallbackServerContext* context, const Response& response,
                                       grpc::ByteBuffer* out) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  Answer<Response>(response, out, reactor);
  return reactor;
}

}  // namespace

ControlService::ControlService(ControlServiceOptions options)
    : options_(std::move(options)), started_(options_.clock->Now()) {}

grpc::ServerUnaryReactor* ControlService::GetServerInfo(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* /*request*/,
                                                        grpc::ByteBuffer* response) {
  return AnswerAtOnce(context, ServerInfo(), response);
}

grpc::ServerUnaryReactor* ControlService::GetModelInfo(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* /*request*/,
                                                       grpc::ByteBuffer* response) {
  return AnswerAtOnce(context, ModelInfo(), response);
}

grpc::ServerUnaryReactor* ControlService::GetLoad(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* /*request*/,
                                                  grpc::ByteBuffer* response) {
  return AnswerAtOnce(context, Load(), response);
}

grpc::ServerUnaryReactor* ControlService::GetCluster(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* /*request*/,
                                                     grpc::ByteBuffer* response) {
  return AnswerAtOnce(context, Cluster(), response);
}

grpc::ServerUnaryReactor* ControlService::Abort(grpc::CallbackServerContext* context,
                                                const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  const absl::StatusOr<v1::AbortRequest> message = ParseMessage<v1::AbortRequest>(*request, kMaxControlBytes);
  if (message.ok()) {
    Answer(AbortRequests(*message), response, reactor);
  } else {
    Answer<v1::AbortResponse>(message.status(), response, reactor);
  }
  return reactor;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* ControlService::Trace(grpc::CallbackServerContext* /*context*/,
                                                                  const grpc::ByteBuffer* request) {
  const absl::StatusOr<absl::Duration> length = TraceLength(*request);
  if (!length.ok()) return new RefusedTrace(length.status());
  TraceStreamOptions options;
  options.now = options_.clock->Now();
  options.length = *length;
  options.running = traces_;
  const std::shared_ptr<TraceStream> stream = TraceStream::Begin(engine_->Snapshot(), std::move(options));
  engine_->Observe(stream);
  return stream.get();
}

absl::StatusOr<absl::Duration> ControlService::TraceLength(const grpc::ByteBuffer& request) const {
  ASSIGN_OR_RETURN(const v1::TraceRequest message, ParseMessage<v1::TraceRequest>(request, kMaxControlBytes));
  if (!(message.seconds() > 0 && message.seconds() <= kMaxTraceSeconds)) {
    return Refusal(
        absl::StatusCode::kInvalidArgument, "TRACE_LENGTH",
        absl::StrCat("seconds: ", message.seconds(), " is not above 0 and at most ", kMaxTraceSeconds));
  }
  if (traces_->load() >= kMaxTraces) {
    return RetryLater(absl::StatusCode::kResourceExhausted, "TOO_MANY_TRACES",
                      absl::StrCat(kMaxTraces, " traces are running; retry when one has ended"));
  }
  return absl::Seconds(message.seconds());
}

v1::GetServerInfoResponse ControlService::ServerInfo() const {
  const PipelineSnapshot pipeline = engine_->Snapshot();
  const RequestRegistry::State state = options_.registry->state();
  v1::GetServerInfoResponse info;
  info.set_version(options_.version);
  info.set_api_revision(kApiRevision);
  info.set_state(ToProto(pipeline.state));
  info.set_state_detail(pipeline.detail);
  if (state == RequestRegistry::State::kStopping) {
    info.set_state(v1::GetServerInfoResponse::STATE_STOPPING);
    info.set_state_detail("the server finishes its live requests and takes no new ones");
  } else if (state == RequestRegistry::State::kDraining) {
    info.set_state(v1::GetServerInfoResponse::STATE_DRAINING);
    info.set_state_detail(
        absl::StrCat(options_.registry->live(),
                     " requests are left; new ones are refused until the server is started again"));
  }
  SetDuration(options_.clock->Now() - started_, info.mutable_uptime());
  info.set_max_queued_requests(options_.max_queued_requests);
  info.set_max_running_requests(options_.max_running_requests);
  info.set_max_input_bytes(options_.max_input_bytes);
  return info;
}

v1::GetModelInfoResponse ControlService::ModelInfo() const {
  const HyperParameters& model = options_.model;
  v1::GetModelInfoResponse info;
  info.set_name(model.name);
  info.set_architecture(model.architecture);
  info.set_fingerprint(options_.fingerprint);
  info.set_context_tokens(model.context_tokens);
  info.set_vocabulary_size(model.vocabulary_size);
  info.set_layers(model.num_layers);
  info.set_hidden_size(model.hidden_size);
  info.set_attention_heads(model.num_heads);
  info.set_kv_heads(model.num_kv_heads);
  info.set_head_size(model.head_size);
  info.set_weight_bytes(options_.weight_bytes);
  info.set_kv_bytes_per_token(model.KvBytesPerToken(model.num_layers, options_.kv_type));
  if (options_.tokenizer->bos().has_value()) info.set_bos_token_id(*options_.tokenizer->bos());
  const absl::Span<const TokenId> ends = options_.tokenizer->end_tokens();
  info.mutable_eos_token_ids()->Add(ends.begin(), ends.end());
  info.set_adds_bos(options_.tokenizer->adds_bos());
  info.set_has_chat_template(options_.has_chat_template);
  return info;
}

v1::GetLoadResponse ControlService::Load() const {
  const PipelineSnapshot pipeline = engine_->Snapshot();
  v1::GetLoadResponse load;
  FillScheduler(pipeline.load, &load);
  load.set_queued_requests(load.queued_requests() + static_cast<uint32_t>(options_.queued_jobs()));
  load.set_epoch(pipeline.epoch);
  SetDuration(pipeline.active, load.mutable_active());
  if (!pipeline.stages.empty()) {
    const ClusterSnapshot cluster = engine_->Cluster();
    load.set_predicted_imbalance(cluster.predicted_imbalance);
    load.set_imbalance_bound(cluster.imbalance_bound);
  }
  for (const StageSnapshot& stage : pipeline.stages) {
    const uint32_t number = static_cast<uint32_t>(load.stages_size());
    v1::StageLoad* added = load.add_stages();
    added->set_stage(number);
    FillStage(stage, pipeline.active, added);
    const std::vector<double>& errors = pipeline.load.cost_errors;
    if (number < errors.size()) added->set_cost_error(errors[number]);
  }
  load.set_bubble_ratio(PipelineUse(pipeline, &StageSnapshot::total).BubbleRatio());
  load.set_window_bubble_ratio(PipelineUse(pipeline, &StageSnapshot::window).BubbleRatio());
  SetDuration(BubbleMeter::kWindow, load.mutable_window());
  SetDuration(pipeline.mean_hop, load.mutable_mean_hop());
  return load;
}

v1::GetClusterResponse ControlService::Cluster() const {
  const ClusterSnapshot cluster = engine_->Cluster();
  v1::GetClusterResponse response;
  for (const WorkerSnapshot& worker : cluster.workers) {
    v1::ClusterWorker* added = response.add_workers();
    added->set_worker_id(worker.id.value());
    added->set_address(worker.address);
    added->set_host(worker.host);
    added->set_numeric_class(worker.numeric_class);
    added->set_memory_bytes(worker.memory_bytes);
    added->set_kv_memory_bytes(worker.kv_memory_bytes);
    added->set_threads(worker.threads);
    if (worker.stage.has_value()) added->set_stage(*worker.stage);
    if (worker.profile.has_value()) *added->mutable_profile() = ToWire(*worker.profile);
  }
  response.set_stages(static_cast<uint32_t>(cluster.layers.size()));
  response.mutable_layers()->Add(cluster.layers.begin(), cluster.layers.end());
  response.set_max_rows(cluster.max_rows);
  response.set_max_in_flight(cluster.max_in_flight);
  response.set_block_tokens(cluster.block_tokens);
  response.set_context_tokens(cluster.context_tokens);
  response.set_kv_type(ToWire(cluster.kv_type));
  return response;
}

namespace {

struct DrainAsk {
  std::optional<uint32_t> stage;
  absl::Duration wait;
};

absl::StatusOr<DrainAsk> ParseDrain(const grpc::ByteBuffer& request) {
  ASSIGN_OR_RETURN(const v1::DrainRequest message, ParseMessage<v1::DrainRequest>(request, kMaxControlBytes));
  DrainAsk ask;
  if (message.has_stage()) ask.stage = message.stage();
  ask.wait = message.has_wait() ? GetDuration(message.wait()) : kDefaultDrainWait;
  if (ask.wait >= absl::ZeroDuration() && ask.wait <= kMaxDrainWait) return ask;
  return Refusal(absl::StatusCode::kInvalidArgument, "DRAIN_WAIT",
                 absl::StrCat("wait: ", absl::FormatDuration(ask.wait), " is not between 0 and ",
                              absl::FormatDuration(kMaxDrainWait)));
}

}  // namespace

// The server is shut down only when every call has ended, so `this` outlives them.
grpc::ServerUnaryReactor* ControlService::Drain(grpc::CallbackServerContext* context,
                                                const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  absl::StatusOr<DrainAsk> ask = ParseDrain(*request);
  if (ask.ok() && drains_.fetch_add(1) >= kMaxDrains) {
    drains_.fetch_sub(1);
    ask = RetryLater(absl::StatusCode::kResourceExhausted, "TOO_MANY_DRAINS",
                     absl::StrCat(kMaxDrains, " calls wait for a drain; retry when one has ended"));
  }
  if (!ask.ok()) {
    Answer<v1::DrainResponse>(ask.status(), response, reactor);
    return reactor;
  }
  const bool of_stage = ask->stage.has_value();
  if (!of_stage) {
    options_.registry->Close(RequestRegistry::State::kDraining);
    options_.drain.on_drain();
  }
  options_.drain.drain(
      ask->stage, ask->wait, [this, of_stage, response, reactor](absl::StatusOr<bool> finished) {
        drains_.fetch_sub(1);
        Answer<v1::DrainResponse>(finished.ok()
                                      ? absl::StatusOr<v1::DrainResponse>(Drained(of_stage, *finished))
                                      : finished.status(),
                                  response, reactor);
      });
  return reactor;
}

v1::DrainResponse ControlService::Drained(bool of_stage, bool finished) const {
  v1::DrainResponse response;
  response.set_finished(finished);
  if (finished) return response;
  const size_t left = of_stage ? engine_->Snapshot().load.begun() : options_.registry->live();
  response.set_remaining_requests(static_cast<uint32_t>(left));
  return response;
}

absl::StatusOr<v1::AbortResponse> ControlService::AbortRequests(const v1::AbortRequest& request) {
  if (!request.all() && request.request_ids().empty()) {
    return Refusal(absl::StatusCode::kInvalidArgument, "NO_REQUEST_IDS",
                   "nothing to abort: name request_ids or set all");
  }
  std::vector<const std::string*> ids;
  for (const std::string& id : request.request_ids()) ids.push_back(&id);
  v1::AbortResponse response;
  const auto streams = request.all() ? options_.registry->All() : options_.registry->Find(ids);
  for (const std::shared_ptr<GenerateStream>& stream : streams) {
    stream->RequestEnd(
        Refusal(absl::StatusCode::kCancelled, "ABORTED", "the request was aborted through Control.Abort"));
    response.add_aborted_ids(stream->request_id());
  }
  return response;
}

}  // namespace millrace
