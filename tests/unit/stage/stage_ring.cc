#include "tests/unit/stage/stage_ring.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <utility>

#include "worker/device/cpu/host_devices.h"

namespace millrace::testing {
namespace {

template <typename T>
T ValueOrDie(absl::StatusOr<T> value) {
  if (!value.ok()) {
    fprintf(stderr, "%s\n", value.status().ToString().c_str());
    abort();
  }
  return *std::move(value);
}

void OkOrDie(const absl::Status& status) {
  if (status.ok()) return;
  fprintf(stderr, "%s\n", status.ToString().c_str());
  abort();
}

}  // namespace

std::unique_ptr<kernels::Backend> MakeBackend(const std::string& isa) {
  return MakeBackend(kernels::CpuBackendOptions{.isa = isa});
}

std::unique_ptr<kernels::Backend> MakeBackend(const kernels::CpuBackendOptions& options) {
  return options.isa == "reference" ? kernels::MakeReferenceBackend()
                                    : ValueOrDie(kernels::MakeCpuBackend(options));
}

TestModel TestModel::FromBytes(std::vector<uint8_t> bytes, const std::string& isa) {
  return FromBytes(std::move(bytes), kernels::CpuBackendOptions{.isa = isa});
}

TestModel TestModel::FromBytes(std::vector<uint8_t> bytes, const kernels::CpuBackendOptions& options) {
  TestModel model;
  model.bytes = std::move(bytes);
  model.file = ValueOrDie(GgufFile::Parse(model.bytes, "tiny"));
  model.shape = ValueOrDie(ReadHyperParameters(*model.file));
  model.backend = MakeBackend(options);
  model.options = options;
  return model;
}

TestModel TestModel::FromFile(const std::string& path, const std::string& isa) {
  TestModel model;
  model.file = ValueOrDie(GgufFile::Open(path));
  model.shape = ValueOrDie(ReadHyperParameters(*model.file));
  model.backend = MakeBackend(isa);
  model.options.isa = isa;
  return model;
}

StageRing::StageRing(const TestModel& model, StageRingOptions options) {
  const HyperParameters& shape = model.shape;
  limits_.max_rows = options.max_rows;
  limits_.num_blocks = options.num_blocks;
  limits_.block_tokens = options.block_tokens;
  limits_.vocabulary_size = shape.vocabulary_size;
  limits_.context_tokens = shape.context_tokens;
  if (options.layers.empty()) options.layers = {shape.num_layers};
  std::vector<const kernels::Backend*> backends = {model.backend.get()};
  for (uint32_t i = 1; !options.make_devices && i < options.shards; ++i) {
    backends_.push_back(MakeBackend(model.options));
    backends.push_back(backends_.back().get());
  }
  if (options.make_devices) {
    devices_ = options.make_devices(options.shards);
  } else {
    devices_ = std::make_unique<HostDevices>(backends);
  }
  uint32_t first_layer = 0;
  for (uint32_t layers : options.layers) {
    const StageLayout layout{first_layer, layers, first_layer == 0, first_layer + layers == shape.num_layers};
    StageModelOptions stage{layout, options.max_rows, shape.context_tokens};
    stage.block_tokens = options.block_tokens;
    stage.kv_type = options.kv_type;
    stage.record_decodes = options.record_decodes;
    stages_.push_back(ValueOrDie(StageModel::Create(*model.file, shape, *devices_, stage)));
    KvCache::Shape cache;
    cache.num_layers = layers;
    cache.num_blocks = options.num_blocks;
    cache.block_tokens = options.block_tokens;
    cache.kv_heads = shape.num_kv_heads;
    cache.head_size = shape.head_size;
    cache.type = options.kv_type;
    for (const ShardUse& use : stages_.back()->shards()) cache.shard_kv_heads.push_back(use.kv_heads);
    caches_.push_back(ValueOrDie(KvCache::Create(cache, *devices_)));
    OkOrDie(stages_.back()->Prepare(*caches_.back()));
    first_layer += layers;
  }
}

std::vector<SequenceResult> StageRing::Run(const StageBatch& batch) {
  OkOrDie(CheckBatch(batch, limits_));
  hops_.clear();
  residual_ = nullptr;
  for (size_t i = 0; i < stages_.size(); ++i) {
    residual_ = ValueOrDie(stages_[i]->Run(batch, std::move(residual_), *caches_[i]));
    hops_.emplace_back(residual_->floats(), residual_->floats() + residual_->num_floats());
  }
  return ValueOrDie(stages_.back()->Sample(batch, *residual_));
}

std::vector<float> StageRing::Logits(uint32_t row) {
  const absl::Span<const float> logits = ValueOrDie(stages_.back()->Logits(row, *residual_));
  return {logits.begin(), logits.end()};
}

StageSegment TestSequence::Segment(uint32_t first_position, uint32_t rows) const {
  StageSegment segment;
  segment.sequence = SequenceId(id);
  segment.first_position = first_position;
  segment.token_ids.assign(tokens.begin() + first_position, tokens.begin() + first_position + rows);
  segment.block_ids = blocks;
  return segment;
}

std::vector<TokenId> RandomTokens(uint32_t count, uint32_t vocabulary, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<TokenId> tokens(count);
  for (TokenId& token : tokens) token = random() % vocabulary;
  return tokens;
}

std::vector<BlockId> Blocks(uint32_t first, uint32_t tokens, int step) {
  std::vector<BlockId> blocks;
  for (uint32_t i = 0; i < (tokens + 15) / 16; ++i) blocks.push_back(first + static_cast<int>(i) * step);
  return blocks;
}

StageBatch BatchOf(std::vector<StageSegment> segments) {
  StageBatch batch;
  batch.epoch = Epoch(1);
  batch.id = MicrobatchId(1);
  batch.segments = std::move(segments);
  return batch;
}

std::vector<float> AllLogits(StageRing& ring, const TestSequence& sequence, uint32_t chunk) {
  std::vector<float> all;
  const auto tokens = static_cast<uint32_t>(sequence.tokens.size());
  for (uint32_t first = 0; first < tokens; first += chunk) {
    const uint32_t rows = std::min(chunk, tokens - first);
    ring.Run(BatchOf({sequence.Segment(first, rows)}));
    for (uint32_t row = 0; row < rows; ++row) {
      const std::vector<float> logits = ring.Logits(row);
      all.insert(all.end(), logits.begin(), logits.end());
    }
  }
  return all;
}

}  // namespace millrace::testing
