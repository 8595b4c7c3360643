#include "worker/control/stage_host.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/check.h"
#include "common/log.h"
#include "common/options.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "common/transport/local_socket.h"
#include "worker/control/backend_choice.h"
#include "worker/control/stage_messages.h"
#include "worker/kv/kv_room.h"
#include "worker/stage/shard_layout.h"
#include "worker/stage/stage_bytes.h"
#include "worker/stage/stage_model.h"
#include "worker/stage/stage_profiler.h"

namespace millrace {
namespace {

constexpr absl::Duration kConnectTimeout = absl::Seconds(10);
constexpr absl::Duration kLocalConnectTimeout = absl::Seconds(2);
constexpr uint32_t kMaxInFlightLimit = 4096;
constexpr uint32_t kMaxRowsLimit = 65536;

absl::Status CheckAssign(const v1::Assign& assign, const HyperParameters& model) {
  const auto in_range = [](uint64_t value, uint64_t max) { return value >= 1 && value <= max; };
  if (!in_range(assign.num_stages(), model.num_layers) || assign.stage() >= assign.num_stages() ||
      !in_range(assign.num_layers(), model.num_layers) ||
      uint64_t{assign.first_layer()} + assign.num_layers() > model.num_layers ||
      !in_range(assign.block_tokens(), 4096) || assign.block_tokens() % kernels::kKeyGroupTokens != 0 ||
      !in_range(assign.max_rows(), kMaxRowsLimit) || !in_range(assign.max_in_flight(), kMaxInFlightLimit) ||
      !in_range(assign.max_context_tokens(), model.context_tokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat("assignment does not fit the model: ", assign.ShortDebugString()));
  }
  return absl::OkStatus();
}

StageHostOptions WithFactory(StageHostOptions options) {
  if (!options.make_stage) options.make_stage = StageModel::Create;
  return options;
}

}  // namespace

StageHost::StageHost(StageHostOptions options) : options_(WithFactory(std::move(options))), result_pool_(8) {}

StageHost::~StageHost() {
  EndEpoch();
}

absl::Status StageHost::OpenModel(const std::string& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  std::string fingerprint = file->Fingerprint();
  RETURN_IF_ERROR(TakeFile(std::move(file)));
  fingerprint_ = std::move(fingerprint);
  return absl::OkStatus();
}

absl::Status StageHost::OpenFetchedModel(std::unique_ptr<ModelFetch> fetch) {
  ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> file, fetch->OpenFile());
  RETURN_IF_ERROR(TakeFile(std::move(file)));
  fingerprint_ = fetch->fingerprint();
  fetch_ = std::move(fetch);
  return absl::OkStatus();
}

absl::Status StageHost::TakeFile(std::unique_ptr<GgufFile> file) {
  ASSIGN_OR_RETURN(hyper_parameters_, ReadHyperParameters(*file));
  file_ = std::move(file);
  return absl::OkStatus();
}

// REQUIRES: no stage is loaded, whose weights would lie in the file that this may map anew.
absl::Status StageHost::FetchLayers(const StageLayout& layout, uint32_t stage) {
  if (fetch_ == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(
      const std::vector<ByteRange> ranges,
      StageByteRanges(*file_, hyper_parameters_, layout, static_cast<uint32_t>(options_.backends.shards)));
  ASSIGN_OR_RETURN(const bool fetched, fetch_->Need(absl::StrCat("stage ", stage), ranges));
  if (!fetched) return absl::OkStatus();
  ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> file, fetch_->OpenFile());
  return TakeFile(std::move(file));
}

absl::Status StageHost::CheckShards() const {
  return CutShards(ReadShardShape(*file_, hyper_parameters_), static_cast<uint32_t>(options_.backends.shards))
      .status();
}

// What was loaded for other backends goes with them.
absl::Status StageHost::ChooseBackends(const StageBackendChoice& choice) {
  if (devices_ != nullptr && choice == choice_) return absl::OkStatus();
  stage_.reset();
  devices_.reset();
  ASSIGN_OR_RETURN(devices_, MakeStageDevices(options_.backends, choice, AllowedCores()));
  choice_ = choice;
  const kernels::Backend& backend = devices_->device(0).ops();
  LogInfo("kernels: ", backend.name(), ", ", backend.threads(),
          backend.threads() == 1 ? " thread" : " threads", options_.backends.pin_threads ? " (pinned)" : "",
          ", ", NumericClass(BackendFamily(options_.backends), choice.numeric));
  return absl::OkStatus();
}

absl::StatusOr<WorkerProfile> StageHost::Measure(const v1::Measure& measure) {
  if (measure.max_rows() > kMaxRowsLimit || measure.context_tokens() > hyper_parameters_.context_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("a measurement that does not fit the model: ", measure.ShortDebugString()));
  }
  ASSIGN_OR_RETURN(const StageBackendChoice choice, ToBackendChoice(measure));
  RETURN_IF_ERROR(ChooseBackends(choice));
  StageProfilerOptions options;
  options.max_rows = measure.max_rows();
  options.context_tokens = measure.context_tokens();
  options.block_tokens = measure.block_tokens();
  options.kv_type = choice.numeric.kv;
  if (measure.brief()) {
    options.enough = kBriefProfileEnough;
    options.limit = kBriefProfileLimit;
  }
  if (fetch_ == nullptr) return MeasureProfile(*file_, hyper_parameters_, *devices_, options);
  // Layers come when they are assigned, which needs this measurement.
  ASSIGN_OR_RETURN(const std::unique_ptr<StandInModel> stand_in,
                   StandInModel::Create(*file_, hyper_parameters_, ProfiledLayout(*file_, hyper_parameters_),
                                        static_cast<uint32_t>(options_.backends.shards)));
  return MeasureProfile(stand_in->file(), hyper_parameters_, *devices_, options);
}

absl::Status StageHost::LoadLayers(const v1::Assign& assign) {
  StageLayout layout;
  layout.first_layer = assign.first_layer();
  layout.num_layers = assign.num_layers();
  layout.first = assign.stage() == 0;
  layout.last = assign.stage() + 1 == assign.num_stages();
  const bool same = stage_ != nullptr && layout.first_layer == layout_.first_layer &&
                    layout.num_layers == layout_.num_layers && layout.first == layout_.first &&
                    layout.last == layout_.last && assign.max_rows() == max_rows_ &&
                    assign.max_context_tokens() == context_tokens_ && assign.block_tokens() == block_tokens_;
  if (same) return absl::OkStatus();
  stage_.reset();
  RETURN_IF_ERROR(FetchLayers(layout, assign.stage()));
  StageModelOptions options{layout, assign.max_rows(), assign.max_context_tokens(), options_.on_progress};
  options.block_tokens = assign.block_tokens();
  options.kv_type = choice_.numeric.kv;
  options.stage = assign.stage();
  ASSIGN_OR_RETURN(stage_, options_.make_stage(*file_, hyper_parameters_, *devices_, options));
  layout_ = layout;
  max_rows_ = assign.max_rows();
  context_tokens_ = assign.max_context_tokens();
  block_tokens_ = assign.block_tokens();
  return absl::OkStatus();
}

KvCache::Shape StageHost::CacheShape(uint32_t blocks) const {
  KvCache::Shape shape;
  shape.num_layers = assign_.num_layers();
  shape.num_blocks = blocks;
  shape.block_tokens = assign_.block_tokens();
  shape.kv_heads = hyper_parameters_.num_kv_heads;
  shape.head_size = hyper_parameters_.head_size;
  shape.type = choice_.numeric.kv;
  for (const ShardUse& use : stage_->shards()) shape.shard_kv_heads.push_back(use.kv_heads);
  return shape;
}

void StageHost::FillShards(v1::Loaded* loaded) const {
  for (const ShardUse& use : stage_->shards()) {
    v1::ShardMemory* shard = loaded->add_shards();
    shard->set_weight_bytes(use.weight_bytes);
    shard->set_activation_bytes(use.activation_bytes);
    shard->set_kv_bytes_per_block(loaded->kv_bytes_per_block() / hyper_parameters_.num_kv_heads *
                                  use.kv_heads);
  }
}

// What is free for blocks of the KV cache, as the number of whole blocks.
absl::StatusOr<uint64_t> StageHost::KvBlocks(uint64_t transit_bytes) const {
  constexpr uint64_t kMostBlocks = 1u << 24;
  const KvCache::Shape shape = CacheShape(1);
  uint64_t room = options_.kv_memory_bytes;
  uint64_t blocks = 0;
  if (devices_->device(0).on_host()) {
    const uint64_t available = AvailableMemoryBytes();
    room = std::min(room != 0 ? room : kHostKvMemoryBytes, available - std::min(available, transit_bytes));
    blocks = room / shape.BytesPerBlock();
  } else {
    if (room == 0) room = std::numeric_limits<uint64_t>::max();
    blocks = DeviceKvBlocks(*devices_, shape, room);
    room = std::min(room, devices_->device(0).FreeBytes());
  }
  if (blocks != 0) return std::min(blocks, kMostBlocks);
  return absl::ResourceExhaustedError(absl::StrCat("no room for the KV cache: one block takes ",
                                                   FormatBytes(shape.BytesPerBlock()), ", there are ",
                                                   FormatBytes(room), "; raise --kv-memory or free memory"));
}

absl::StatusOr<v1::Loaded> StageHost::Assign(const v1::Assign& assign) {
  EndEpoch();
  RETURN_IF_ERROR(CheckAssign(assign, hyper_parameters_));
  ASSIGN_OR_RETURN(const StageBackendChoice choice, ToBackendChoice(assign));
  RETURN_IF_ERROR(ChooseBackends(choice));
  assign_ = assign;
  RETURN_IF_ERROR(LoadLayers(assign));
  const uint64_t block_bytes = CacheShape(1).BytesPerBlock();
  // The residual streams that wait, or are being sent, while one is computed.
  const uint64_t payload_bytes = uint64_t{assign.max_rows()} * hyper_parameters_.hidden_size * sizeof(float);
  const uint64_t transit_bytes = (assign.max_in_flight() - 1) * payload_bytes;
  ASSIGN_OR_RETURN(const uint64_t blocks, KvBlocks(transit_bytes));
  inbox_ = std::make_shared<StageInbox>(size_t{2} * assign.max_in_flight() + 2);
  options_.router->Open(Epoch(assign.epoch()), assign.max_rows(), inbox_);
  HopSession session;
  session.epoch = Epoch(assign.epoch());
  session.limits.max_rows = assign.max_rows();
  session.limits.max_stamps = assign.stage();
  session.limits.max_payload_bytes = payload_bytes;
  session.deliver = [router = options_.router](HopMessage message) {
    return router->DeliverActivations(std::move(message));
  };
  options_.listener->SetSession(std::move(session));
  v1::Loaded loaded;
  loaded.set_epoch(assign.epoch());
  loaded.set_weight_bytes(stage_->weight_bytes());
  loaded.set_activation_bytes(stage_->activation_bytes() + transit_bytes);
  loaded.set_kv_blocks(static_cast<uint32_t>(blocks));
  loaded.set_kv_bytes_per_block(block_bytes);
  FillShards(&loaded);
  loaded.set_model_fingerprint(fingerprint_);
  loaded.set_threads(static_cast<uint32_t>(devices_->device(0).ops().threads()));
  return loaded;
}

HopLinkOptions StageHost::LinkOptions(const std::string& address) const {
  HopLinkOptions link;
  link.address = address;
  link.credentials = options_.credentials;
  link.secret = options_.secret;
  link.epoch = Epoch(assign_.epoch());
  link.max_queued = assign_.max_in_flight() + 1;
  link.own_writer = true;
  link.on_broken = [this, epoch = link.epoch](absl::Status why) {
    options_.on_failed(epoch, std::move(why));
  };
  return link;
}

// While this only tries, an end of the stream is no failure of the epoch.
bool StageHost::ConnectLocally() {
  if (!IsUnixAddress(assign_.next_unix_address())) return false;
  HopLinkOptions link = LinkOptions(assign_.next_unix_address());
  const auto in_use = std::make_shared<std::atomic<bool>>(false);
  link.on_broken = [in_use, report = std::move(link.on_broken)](absl::Status why) {
    if (in_use->load()) report(std::move(why));
  };
  link_ = std::make_unique<HopLink>(std::move(link));
  absl::Status status = link_->WaitConnected(kLocalConnectTimeout);
  in_use->store(true);
  // Also if it ended in between, and so was not reported.
  if (status.ok()) status = link_->WaitConnected(absl::ZeroDuration());
  if (status.ok()) return true;
  LogWarning("using TCP, as the Unix socket of the same host cannot be reached: ", status.message());
  link_.reset();
  return false;
}

absl::Status StageHost::ConnectNext() {
  hop_is_local_ = ConnectLocally();
  if (!hop_is_local_) {
    link_ = std::make_unique<HopLink>(
        LinkOptions(assign_.next_address().empty() ? options_.coordinator_address : assign_.next_address()));
    RETURN_IF_ERROR(link_->WaitConnected(kConnectTimeout));
  }
  LogInfo("hop to ", assign_.next_address().empty() ? "the coordinator" : assign_.next_address(),
          hop_is_local_ ? " by a Unix socket" : " by TCP");
  return absl::OkStatus();
}

void StageHost::StartComputing(uint32_t kv_blocks) {
  StageRunnerOptions runner;
  runner.epoch = Epoch(assign_.epoch());
  runner.first = layout_.first;
  runner.last = layout_.last;
  runner.hidden_size = hyper_parameters_.hidden_size;
  runner.max_in_flight = assign_.max_in_flight();
  runner.limits = {max_rows_, kv_blocks, assign_.block_tokens(), hyper_parameters_.vocabulary_size,
                   context_tokens_};
  runner_ = std::make_unique<StageRunner>(runner, stage_.get(), cache_.get(), inbox_.get(),
                                          [this](StageOutput output) { return Emit(std::move(output)); });
  {
    MutexLock lock(&done_mutex_);
    counted_ = runner_.get();
  }
  compute_ = std::thread([this, epoch = runner.epoch] {
    NameThread("compute");
    devices_->device(0).Enter();
    const absl::Status status = runner_->Run();
    if (!status.ok()) options_.on_failed(epoch, status);
  });
}

absl::Status StageHost::Activate(const v1::Activate& activate) {
  if (activate.epoch() != assign_.epoch() || inbox_ == nullptr || compute_.joinable()) {
    return absl::FailedPreconditionError(absl::StrCat("epoch ", activate.epoch(), " was not assigned"));
  }
  ASSIGN_OR_RETURN(cache_, KvCache::Create(CacheShape(activate.kv_blocks()), *devices_));
  RETURN_IF_ERROR(stage_->Prepare(*cache_));
  RETURN_IF_ERROR(ConnectNext());
  StartComputing(activate.kv_blocks());
  return absl::OkStatus();
}

absl::Status StageHost::Emit(StageOutput output) {
  HopMessage message = ToHopMessage(std::move(output), result_pool_);
  message.stamps.back().sent_ns = SteadyNanos();
  const uint64_t id = message.microbatch.value();
  if (link_->Send(std::move(message))) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("microbatch ", id, " could not be sent on: the hop is gone or full"));
}

void StageHost::EndEpoch() {
  options_.router->Close();
  options_.listener->ClearSession();
  if (inbox_ != nullptr) inbox_->Close();
  if (compute_.joinable()) compute_.join();
  {
    MutexLock lock(&done_mutex_);
    counted_ = nullptr;
  }
  runner_.reset();
  link_.reset();
  inbox_.reset();
  cache_.reset();
}

uint64_t StageHost::microbatches_done() const {
  MutexLock lock(&done_mutex_);
  return counted_ == nullptr ? 0 : counted_->microbatches_done();
}

}  // namespace millrace
