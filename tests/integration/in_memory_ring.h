// A whole ring in one process: the real scheduler and the real stages on threads of their own, joined by
// queues instead of gRPC, so that the thread sanitizer sees all of it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/buffer_pool.h"
#include "coordinator/scheduler/scheduler.h"
#include "kernels/backend.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"
#include "tests/testing/tiny_llama.h"
#include "worker/device/cpu/host_devices.h"
#include "worker/stage/stage_model.h"
#include "worker/stage/stage_runner.h"

namespace millrace::testing {

struct InMemoryRingOptions {
  std::vector<uint32_t> layers;  // of each stage; they add up to the model's
  uint32_t max_rows = 64;
  uint32_t max_in_flight = 0;  // 0: stages + 1
  uint32_t num_blocks = 512;
  uint32_t block_tokens = 16;
  bool prefix_cache = true;
  kernels::CpuBackendOptions backend = {};  // of each stage
  KvType kv_type = KvType::kF32;
};

struct SequenceOutcome {
  std::vector<TokenId> tokens;
  std::vector<TokenLogprobs> logprobs;         // of tokens
  std::vector<TokenLogprobs> prompt_logprobs;  // of prompt tokens but the first
  absl::Status status;
  FinishReason reason = FinishReason::kLength;
  uint32_t cached_prompt_tokens = 0;
};
using Outcomes = std::map<SequenceId, SequenceOutcome>;

// Requests that arrive once so many microbatches have been sent.
struct Arrival {
  uint64_t after_microbatches = 0;
  SequenceRequest request;
};

class InMemoryRing {
 public:
  // Failures end the test program: nothing can be tested without a ring.
  InMemoryRing(const TinyLlamaOptions& model, const InMemoryRingOptions& options);
  ~InMemoryRing();

  // Runs until every request has ended.
  Outcomes Run(std::vector<Arrival> arrivals);

  uint32_t most_in_flight() const { return most_in_flight_; }
  uint64_t preemptions() const { return scheduler_->load().preemptions; }

 private:
  struct Stage {
    std::unique_ptr<HostDevices> devices;
    std::unique_ptr<StageModel> model;
    std::unique_ptr<KvCache> cache;
    std::unique_ptr<StageInbox> inbox;
    std::unique_ptr<StageRunner> runner;
    std::thread thread;
  };
  struct Returned {
    MicrobatchId id;
    std::vector<SequenceResult> results;
  };

  void MakeStage(size_t index);
  absl::Status Emit(size_t stage, StageOutput output);
  void Send(const MicrobatchPlan& plan);
  void Collect(Outcomes& outcomes);

  const InMemoryRingOptions options_;
  const uint32_t max_in_flight_;
  std::vector<uint8_t> bytes_;
  std::unique_ptr<GgufFile> file_;
  HyperParameters shape_;
  BoundedQueue<Returned> returned_;
  std::vector<Stage> stages_;
  std::unique_ptr<Scheduler> scheduler_;
  uint32_t most_in_flight_ = 0;
};

}  // namespace millrace::testing
