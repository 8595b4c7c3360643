#include "worker/stage/stage_profiler.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "worker/kv/kv_cache.h"
#include "worker/stage/output_head.h"
#include "worker/stage/stage_batch.h"
#include "worker/stage/stage_compute.h"
#include "worker/stage/stage_shards.h"

namespace millrace {
namespace {

constexpr uint32_t kMostRows = 128;
constexpr uint32_t kHeadRows = 32;
constexpr uint32_t kFarContext = 512;
constexpr uint32_t kFarSequences = 8;
constexpr uint32_t kChunkRows = 64;
constexpr uint64_t kFarBytes = uint64_t{32} << 20;    // of KV cache
constexpr uint64_t kCacheBytes = uint64_t{64} << 20;  // more than a core's caches hold
constexpr int kMinRounds = 3;

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// Something to measure, and what it took so far.
struct Subject {
  ProfilePoint point;
  bool head = false;
  StageBatch batch;
  std::vector<double> seconds;
};

class Profiler {
 public:
  Profiler(const HyperParameters& shape, DeviceGroup& devices, const StageProfilerOptions& options)
      : shape_(shape),
        devices_(devices),
        options_(options),
        on_host_(devices.device(0).on_host()),
        rows_(std::min(options.max_rows, kMostRows)) {}

  absl::Status Prepare(const GgufFile& file);
  absl::StatusOr<WorkerProfile> Measure();

 private:
  void ChooseSizes();
  void MakeSubjects();
  void AddLayer(uint32_t rows, uint32_t sequences, uint32_t context);
  StageBatch MakeBatch(uint32_t rows, uint32_t sequences, uint32_t context) const;
  void FillMemory();
  absl::StatusOr<double> Run(const Subject& subject);
  bool TooLong(const Subject& subject, absl::Time begin) const;
  absl::StatusOr<double> Overhead();
  int64_t Nanos() const {
    if (options_.nanos) return options_.nanos();
    return on_host_ ? ThreadCpuNanos() : SteadyNanos();
  }

  const HyperParameters& shape_;
  DeviceGroup& devices_;
  const StageProfilerOptions options_;
  const bool on_host_;
  const uint32_t rows_;
  uint32_t far_context_ = 0;  // 0: no room for one
  uint32_t far_sequences_ = 0;
  uint32_t chunk_ = 0;
  uint32_t num_blocks_ = 0;
  std::vector<float> embedding_;  // a residual stream to begin with
  std::vector<float> residual_;
  uint32_t num_layers_ = 0;  // that are loaded
  std::unique_ptr<StageShards> shards_;
  std::unique_ptr<OutputHead> output_head_;
  std::unique_ptr<KvCache> cache_;
  std::vector<Subject> subjects_;
  uint32_t next_layer_ = 0;
};

void Profiler::ChooseSizes() {
  chunk_ = std::min({rows_, kChunkRows, options_.context_tokens});
  far_context_ = std::min(kFarContext, options_.context_tokens - chunk_);
  const uint64_t context_bytes =
      std::max<uint64_t>(1, shape_.KvBytesPerToken(1, options_.kv_type) * (uint64_t{far_context_} + chunk_));
  far_sequences_ = static_cast<uint32_t>(
      std::clamp<uint64_t>(kFarBytes / context_bytes, 1, std::min(rows_, kFarSequences)));
  const auto blocks = [&](uint32_t tokens) {
    return (tokens + options_.block_tokens - 1) / options_.block_tokens;
  };
  num_blocks_ = std::max(rows_, far_sequences_ * blocks(far_context_ + chunk_));
}

absl::Status Profiler::Prepare(const GgufFile& file) {
  if (options_.max_rows == 0 || options_.context_tokens == 0) {
    return absl::InvalidArgumentError("profile: rows and context must be at least 1");
  }
  ChooseSizes();
  const StageLayout layout = ProfiledLayout(file, shape_);
  num_layers_ = layout.num_layers;
  StageModelOptions stage{layout, rows_, far_context_ + chunk_};
  stage.block_tokens = options_.block_tokens;
  stage.kv_type = options_.kv_type;
  stage.record_decodes = false;
  ASSIGN_OR_RETURN(shards_, StageShards::Create(file, shape_, devices_, stage));
  ASSIGN_OR_RETURN(output_head_, OutputHead::Create(shape_, *shards_));
  KvCache::Shape cache{
      1, num_blocks_, options_.block_tokens, shape_.num_kv_heads, shape_.head_size, options_.kv_type};
  for (const ShardUse& use : shards_->uses()) cache.shard_kv_heads.push_back(use.kv_heads);
  ASSIGN_OR_RETURN(cache_, KvCache::Create(cache, devices_));
  FillMemory();
  MakeSubjects();
  return absl::OkStatus();
}

// Untouched host memory would be one page of zeros, and faster than any real one.
void Profiler::FillMemory() {
  constexpr int kOrdinary = 0x21;  // of each type, these bytes make ordinary numbers
  for (uint32_t i = 0; on_host_ && i < cache_->shape().shard_kv_heads.size(); ++i) {
    const kernels::PagedKv kv = cache_->Layer(0, i);
    const size_t positions = size_t{num_blocks_} * options_.block_tokens * kv.kv_heads;
    for (uint8_t* elements : {kv.key_blocks, kv.value_blocks}) {
      std::memset(elements, kOrdinary, positions * shape_.head_size * kernels::KvElementBytes(kv.type));
    }
    for (float* scales : {kv.key_scales, kv.value_scales}) {
      if (scales != nullptr) std::memset(scales, kOrdinary, positions * sizeof(float));
    }
  }
  embedding_.resize(size_t{rows_} * shape_.hidden_size);
  for (size_t i = 0; i < embedding_.size(); ++i) {
    embedding_[i] = static_cast<float>(i * 7919 % 1009) / 1009.0f - 0.5f;
  }
  residual_ = embedding_;
}

StageBatch Profiler::MakeBatch(uint32_t rows, uint32_t sequences, uint32_t context) const {
  StageBatch batch;
  const uint32_t chunk = rows / sequences;
  const uint32_t blocks = (context + chunk + options_.block_tokens - 1) / options_.block_tokens;
  for (uint32_t s = 0; s < sequences; ++s) {
    StageSegment& segment = batch.segments.emplace_back();
    segment.sequence = SequenceId(s + 1);
    segment.first_position = context;
    segment.token_ids.assign(chunk, s % shape_.vocabulary_size);
    segment.block_ids.resize(blocks);
    std::iota(segment.block_ids.begin(), segment.block_ids.end(), s * blocks);
    segment.sampling.emplace().temperature = 0;
  }
  return batch;
}

void Profiler::AddLayer(uint32_t rows, uint32_t sequences, uint32_t context) {
  subjects_.push_back({{rows, sequences, context, 0}, false, MakeBatch(rows, sequences, context), {}});
}

// Few rows first: what they take tells whether there is time for more.
void Profiler::MakeSubjects() {
  for (uint32_t rows = 1; rows <= rows_; rows *= 2) {
    AddLayer(rows, rows, 0);
    if (rows <= kHeadRows) {
      subjects_.push_back({{rows, rows, 0, 0}, true, MakeBatch(rows, rows, 0), {}});
    }
    if (rows == far_sequences_ && far_context_ > 0) AddLayer(rows, rows, far_context_);
  }
  // far_sequences_ may be no power of two.
  if ((far_sequences_ & (far_sequences_ - 1)) != 0 && far_context_ > 0) {
    AddLayer(far_sequences_, far_sequences_, 0);
    AddLayer(far_sequences_, far_sequences_, far_context_);
  }
  if (chunk_ < 2) return;
  AddLayer(chunk_, 1, 0);
  if (far_context_ > 0) AddLayer(chunk_, 1, far_context_);
}

absl::StatusOr<double> Profiler::Run(const Subject& subject) {
  std::copy_n(embedding_.begin(), size_t{subject.point.rows} * shape_.hidden_size, residual_.begin());
  const uint32_t layer = next_layer_++ % num_layers_;
  const int64_t begin = Nanos();
  if (subject.head) {
    const size_t floats = size_t{subject.point.rows} * shape_.hidden_size;
    RETURN_IF_ERROR(
        output_head_->Sample(subject.batch, absl::MakeConstSpan(residual_.data(), floats)).status());
  } else {
    RETURN_IF_ERROR(shards_->RunLayers({layer, 1, 0}, subject.batch, residual_.data(), *cache_));
  }
  return static_cast<double>(Nanos() - begin) * 1e-9;
}

// By what the largest measurement of the same kind took, if the time goes with the rows.
bool Profiler::TooLong(const Subject& subject, absl::Time begin) const {
  double likely = 0;
  for (const Subject& other : subjects_) {
    if (other.seconds.empty() || other.head != subject.head) continue;
    likely = std::max(likely, other.seconds.front() * subject.point.rows / other.point.rows);
  }
  // The rest of the round, and what else there is to do, takes its time as well.
  return likely > 0 && Clock::Steady().Now() - begin + absl::Seconds(likely) > options_.limit / 2;
}

// What a microbatch of some rows costs outside the layers: taking it apart and moving its rows.
absl::StatusOr<double> Profiler::Overhead() {
  const StageBatch batch = MakeBatch(std::min(rows_, 8u), std::min(rows_, 8u), 0);
  std::vector<double> seconds;
  for (int round = 0; round < kProfileRounds; ++round) {
    const int64_t begin = Nanos();
    const StageBatch copy = batch;
    RETURN_IF_ERROR(shards_->RunLayers({0, 0, 0}, copy, residual_.data(), *cache_));
    std::copy_n(embedding_.begin(), size_t{copy.rows()} * shape_.hidden_size, residual_.begin());
    seconds.push_back(static_cast<double>(Nanos() - begin) * 1e-9);
  }
  return Median(std::move(seconds));
}

absl::StatusOr<WorkerProfile> Profiler::Measure() {
  RETURN_IF_ERROR(Run(subjects_.front()).status());  // the kernels' own first touch
  const absl::Time begin = Clock::Steady().Now();
  for (int round = 0; round < kProfileRounds; ++round) {
    if (round > 0 &&
        Clock::Steady().Now() - begin > (round < kMinRounds ? options_.limit / 2 : options_.enough))
      break;
    for (Subject& subject : subjects_) {
      if (round == 0 ? TooLong(subject, begin) : subject.seconds.empty()) continue;
      ASSIGN_OR_RETURN(const double seconds, Run(subject));
      subject.seconds.push_back(seconds);
    }
  }
  WorkerProfile profile;
  profile.layer_elements = shards_->layer_elements();
  for (Subject& subject : subjects_) {
    if (subject.seconds.empty()) continue;
    subject.point.seconds = Median(std::move(subject.seconds));
    (subject.head ? profile.head : profile.layer).push_back(subject.point);
  }
  ASSIGN_OR_RETURN(profile.overhead_seconds, Overhead());
  return profile;
}

}  // namespace

// As many layers as do not fit in the caches together.
StageLayout ProfiledLayout(const GgufFile& file, const HyperParameters& hyper_parameters) {
  const uint64_t layer_bytes = std::max<uint64_t>(1, StageWeightBytes(file, 0, 1, false, false));
  const auto num_layers = static_cast<uint32_t>(
      std::clamp<uint64_t>(kCacheBytes / layer_bytes + 1, 1, hyper_parameters.num_layers));
  return {hyper_parameters.num_layers - num_layers, num_layers, false, true};
}

absl::StatusOr<WorkerProfile> MeasureProfile(const GgufFile& file, const HyperParameters& hyper_parameters,
                                             DeviceGroup& devices, const StageProfilerOptions& options) {
  Profiler profiler(hyper_parameters, devices, options);
  RETURN_IF_ERROR(profiler.Prepare(file));
  return profiler.Measure();
}

}  // namespace millrace
