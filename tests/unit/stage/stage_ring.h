// Stages of one model in one process, one after another, without queues or links: what they compute, and
// nothing else.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"
#include "worker/device/device.h"
#include "worker/kv/kv_cache.h"
#include "worker/stage/stage_model.h"

namespace millrace::testing {

// An opened model and what runs it. Failures end the test program: nothing can be tested without it.
struct TestModel {
  std::vector<uint8_t> bytes;  // if it is not a file
  std::unique_ptr<GgufFile> file;
  HyperParameters shape;
  std::unique_ptr<kernels::Backend> backend;
  kernels::CpuBackendOptions options;  // unless isa is "reference"

  static TestModel FromBytes(std::vector<uint8_t> bytes, const kernels::CpuBackendOptions& options);
  static TestModel FromBytes(std::vector<uint8_t> bytes, const std::string& isa);
  static TestModel FromFile(const std::string& path, const std::string& isa);
};

// "reference", or what kernels::MakeCpuBackend takes.
std::unique_ptr<kernels::Backend> MakeBackend(const std::string& isa);
std::unique_ptr<kernels::Backend> MakeBackend(const kernels::CpuBackendOptions& options);

struct StageRingOptions {
  std::vector<uint32_t> layers = {};  // of each stage; empty: all in one
  uint32_t max_rows = 64;
  uint32_t num_blocks = 256;
  uint32_t block_tokens = 16;
  uint32_t shards = 1;  // of each stage
  KvType kv_type = KvType::kF32;
  // What the stages run on; empty: backends as the model's.
  std::function<std::unique_ptr<DeviceGroup>(uint32_t shards)> make_devices = nullptr;
  bool record_decodes = true;
};

class StageRing {
 public:
  // `model` outlives this.
  StageRing(const TestModel& model, StageRingOptions options);

  // REQUIRES: CheckBatch is OK with it.
  std::vector<SequenceResult> Run(const StageBatch& batch);

  // [rows, hidden] of the last Run, behind each stage.
  const std::vector<std::vector<float>>& hops() const { return hops_; }
  std::vector<float> Logits(uint32_t row);

  StageModel& stage(size_t i) { return *stages_[i]; }
  KvCache& cache(size_t i) { return *caches_[i]; }
  DeviceGroup& devices() { return *devices_; }
  const StageLimits& limits() const { return limits_; }

 private:
  StageLimits limits_;
  std::vector<std::unique_ptr<kernels::Backend>> backends_;  // of the shards but the first
  std::unique_ptr<DeviceGroup> devices_;
  std::vector<std::unique_ptr<StageModel>> stages_;
  std::vector<std::unique_ptr<KvCache>> caches_;
  std::vector<std::vector<float>> hops_;
  std::shared_ptr<PooledBuffer> residual_;
};

// A sequence's tokens and blocks, and segments of it.
struct TestSequence {
  uint64_t id = 1;
  std::vector<TokenId> tokens;
  std::vector<BlockId> blocks;

  StageSegment Segment(uint32_t first_position, uint32_t rows) const;
};

// `count` tokens below `vocabulary`, the same for the same seed.
std::vector<TokenId> RandomTokens(uint32_t count, uint32_t vocabulary, uint32_t seed);

// Block ids first, first + step, ..., enough for `tokens` positions of 16 a block.
std::vector<BlockId> Blocks(uint32_t first, uint32_t tokens, int step = 1);

StageBatch BatchOf(std::vector<StageSegment> segments);

// For each row of the sequence, from a prefill in chunks of so many rows: logits, bit by bit what the ring
// gave.
std::vector<float> AllLogits(StageRing& ring, const TestSequence& sequence, uint32_t chunk);

}  // namespace millrace::testing
