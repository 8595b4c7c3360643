#include "coordinator/planner/plan.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/options.h"
#include "common/status_macros.h"
#include "coordinator/planner/stage_placement.h"

namespace millrace {
namespace {

constexpr uint64_t kMaxMicrobatches = 4000;  // of one simulation
constexpr uint32_t kMaxSimulated = 512;      // sequences

absl::Status CheckRequest(const PlanRequest& request) {
  const size_t workers = request.cluster.workers.size();
  if (workers == 0 || workers > kMaxPlanWorkers) {
    return absl::InvalidArgumentError(absl::StrCat(workers, " workers; a plan takes 1 to ", kMaxPlanWorkers));
  }
  if (request.batch == 0 || request.prompt_tokens == 0 || request.output_tokens == 0 ||
      request.max_rows == 0 || request.block_tokens == 0) {
    return absl::InvalidArgumentError("batch, prompt, output, rows and block size must be at least 1");
  }
  if (request.context_tokens == 0 || request.context_tokens > request.shape.context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("context of ", request.context_tokens, " tokens; ",
                                                   request.shape.name, " is made for 1 to ",
                                                   request.shape.context_tokens));
  }
  if (request.prompt_tokens >= request.context_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("a prompt of ", request.prompt_tokens,
                     " tokens does not leave room for an answer in a context of ", request.context_tokens));
  }
  return absl::OkStatus();
}

// T equal workers as one: matrices and KV heads split, and after attention and FFN of each layer one ring
// all-reduce of the rows, 2 (T - 1) / T of them over each link (Shoeybi et al., arXiv 1909.08053).
PlannedWorker Join(const PlanRequest& request, size_t first, uint32_t ways) {
  PlannedWorker worker = request.cluster.workers[first];
  if (!worker.profile.has_value()) worker.profile = EstimateProfile(*worker.speed, request.shape);
  if (ways == 1) return worker;
  const double t = ways;
  const double row_bytes = static_cast<double>(request.shape.hidden_size) * request.shape.row_element_bytes;
  for (ProfilePoint& point : worker.profile->layer) {
    const double reduced = point.rows * row_bytes * 2 * (t - 1) / t / request.cluster.link_bytes_per_second;
    point.seconds = point.seconds / t + 2 * (2 * (t - 1) * request.cluster.link_seconds + reduced);
  }
  for (ProfilePoint& point : worker.profile->head)
    point.seconds = point.seconds / t + request.cluster.link_seconds;
  worker.name = absl::StrCat(worker.name, " x ", ways);
  worker.memory_bytes *= ways;
  worker.kv_memory_bytes *= ways;
  return worker;
}

class ChoiceMaker {
 public:
  ChoiceMaker(const PlanRequest& request, uint32_t stages, uint32_t ways) : request_(request) {
    choice_.stages = stages;
    choice_.tensor_parallel = ways;
    for (uint32_t s = 0; s < stages; ++s) workers_.push_back(Join(request, size_t{s} * ways, ways));
  }

  PlanChoice Make();

 private:
  absl::Status Place();
  void CountRoom();
  RingSimulation Ring() const;
  void Simulate();

  const PlanRequest& request_;
  PlanChoice choice_;
  std::vector<PlannedWorker> workers_;
  std::vector<StageCost> costs_;
};

absl::Status ChoiceMaker::Place() {
  PlacementInput input;
  input.shape = &request_.shape;
  input.max_rows = request_.max_rows;
  input.context_tokens = request_.context_tokens;
  input.fixed = request_.fixed;
  for (const PlannedWorker& worker : workers_) {
    input.workers.push_back({worker.profile, worker.memory_bytes, worker.kv_memory_bytes, std::nullopt});
  }
  ASSIGN_OR_RETURN(const StagePlacement placed, PlaceStages(input));
  choice_.max_over_mean = placed.max_over_mean;
  choice_.bound = placed.bound;
  for (size_t s = 0; s < placed.ranges.size(); ++s) {
    const PlannedWorker& worker = workers_[placed.workers[s]];
    PlanStage& stage = choice_.placement.emplace_back();
    stage.layers = placed.ranges[s];
    stage.worker = worker.name;
    stage.weight_bytes = request_.shape.WeightBytes(stage.layers);
    stage.kv_bytes =
        request_.shape.KvBytesPerToken(stage.layers.count) * request_.context_tokens * request_.batch;
    stage.activation_bytes =
        request_.shape.ActivationBytes(stage.layers, request_.max_rows, request_.context_tokens);
    stage.memory_bytes = worker.memory_bytes;
    stage.seconds = placed.seconds[s];
    costs_.push_back(MakeStageCost(*worker.profile, request_.shape, stage.layers));
  }
  // By stage from here on.
  std::vector<PlannedWorker> by_stage;
  for (const size_t worker : placed.workers) by_stage.push_back(workers_[worker]);
  workers_ = std::move(by_stage);
  return absl::OkStatus();
}

// The stage with the least room for KV cache decides.
void ChoiceMaker::CountRoom() {
  uint64_t tokens = std::numeric_limits<uint64_t>::max();
  bool known = false;
  for (size_t s = 0; s < choice_.placement.size(); ++s) {
    const PlanStage& stage = choice_.placement[s];
    uint64_t room = std::numeric_limits<uint64_t>::max();
    if (stage.memory_bytes > 0) room = stage.memory_bytes - stage.weight_bytes - stage.activation_bytes;
    if (workers_[s].kv_memory_bytes > 0) room = std::min(room, workers_[s].kv_memory_bytes);
    if (room == std::numeric_limits<uint64_t>::max()) continue;
    known = true;
    tokens = std::min(tokens, room / request_.shape.KvBytesPerToken(stage.layers.count));
  }
  choice_.max_context = std::min<uint64_t>(tokens, request_.shape.context_tokens);
  choice_.max_sequences = known ? tokens / request_.context_tokens : 0;
  choice_.running = known ? std::min<uint64_t>(request_.batch, choice_.max_sequences) : request_.batch;
}

RingSimulation ChoiceMaker::Ring() const {
  RingSimulation ring;
  ring.scheduler.context_tokens = request_.context_tokens;
  ring.scheduler.max_running_sequences = request_.batch;
  ring.scheduler.max_waiting_sequences = request_.batch;
  ring.scheduler.max_rows = request_.max_rows;
  ring.shape.num_stages = choice_.stages;
  ring.shape.max_in_flight = request_.max_in_flight == 0 ? 4 * choice_.stages + 4 : request_.max_in_flight;
  ring.shape.block_tokens = request_.block_tokens;
  const uint64_t blocks_each = (request_.context_tokens + request_.block_tokens - 1) / request_.block_tokens;
  // What does not fit at once waits, as in the cluster.
  const uint64_t sequences = std::clamp<uint64_t>(choice_.running, 1, kMaxSimulated);
  ring.shape.num_blocks = static_cast<uint32_t>(std::min<uint64_t>(sequences * blocks_each, 1u << 24));
  ring.shape.stage_costs = costs_;
  ring.plan_seconds = request_.cluster.link_seconds;
  const double row = static_cast<double>(request_.shape.hidden_size) * sizeof(float);
  for (uint32_t s = 0; s < choice_.stages; ++s) {
    const bool last = s + 1 == choice_.stages;
    ring.hops.push_back(
        {request_.cluster.link_seconds, last ? 0 : row / request_.cluster.link_bytes_per_second});
  }
  ring.max_microbatches = kMaxMicrobatches;
  return ring;
}

void ChoiceMaker::Simulate() {
  const uint32_t sequences = static_cast<uint32_t>(std::clamp<uint64_t>(choice_.running, 1, kMaxSimulated));
  const uint32_t answer = request_.context_tokens - request_.prompt_tokens;
  RingSimulation ring = Ring();
  // Steady: from when all generate until the first one ends.
  ring.requests.assign(sequences, {absl::ZeroDuration(), request_.prompt_tokens, answer});
  ring.warm_up_first_tokens = sequences;
  ring.until_first_end = true;
  ring.max_window_tokens = uint64_t{request_.output_tokens} * sequences;
  choice_.decode = SimulateRing(ring);
  const double window = absl::ToDoubleSeconds(choice_.decode.window);
  if (window > 0)
    choice_.decode_tokens_per_second = static_cast<double>(choice_.decode.output_tokens) / window;
  choice_.inter_token_seconds = absl::ToDoubleSeconds(choice_.decode.inter_token);

  ring = Ring();
  ring.requests.assign(sequences, {absl::ZeroDuration(), request_.prompt_tokens, 1});
  const SimulationResult prefill = SimulateRing(ring);
  const double took = absl::ToDoubleSeconds(prefill.window);
  if (took > 0) choice_.prefill_tokens_per_second = static_cast<double>(prefill.prompt_tokens) / took;

  ring = Ring();
  ring.requests.assign(1, {absl::ZeroDuration(), request_.prompt_tokens, 1});
  choice_.first_token_seconds = absl::ToDoubleSeconds(SimulateRing(ring).first_token);
}

PlanChoice ChoiceMaker::Make() {
  const absl::Status placed = Place();
  if (!placed.ok()) {
    choice_.why_not = std::string(placed.message());
    return std::move(choice_);
  }
  choice_.fits = true;
  CountRoom();
  Simulate();
  return std::move(choice_);
}

// What the worst stage would need: the hint for a model that fits nowhere.
std::string WhatWouldFit(const PlanRequest& request) {
  const ModelShape& shape = request.shape;
  uint64_t largest = 0;
  for (const PlannedWorker& worker : request.cluster.workers)
    largest = std::max(largest, worker.memory_bytes);
  for (uint32_t stages = 1; stages <= shape.num_layers; ++stages) {
    PlacementInput input;
    input.shape = &shape;
    input.max_rows = request.max_rows;
    input.context_tokens = request.context_tokens;
    input.workers.assign(stages, {std::nullopt, largest, 0, std::nullopt});
    if (PlaceStages(input).ok())
      return absl::StrCat("; ", stages, " workers of ", FormatBytes(largest), " would do");
  }
  return "; no number of such workers would do: use a shorter --context or a smaller model";
}

std::vector<std::pair<uint32_t, uint32_t>> Shapes(const PlanRequest& request) {
  const uint32_t workers = static_cast<uint32_t>(request.cluster.workers.size());
  if (!request.fixed.empty()) return {{static_cast<uint32_t>(request.fixed.size()), 1}};
  std::vector<std::pair<uint32_t, uint32_t>> shapes;
  for (uint32_t ways = 1; ways <= std::min(workers, 8u); ways *= 2) {
    const bool divides = request.shape.num_heads % ways == 0 && request.shape.num_kv_heads % ways == 0;
    if (!divides) break;
    const uint32_t most = std::min(workers / ways, request.shape.num_layers);
    for (uint32_t stages = 1; stages <= most; stages = stages < 4 ? stages + 1 : stages * 2) {
      shapes.push_back({stages, ways});
    }
    if (shapes.back() != std::pair{most, ways}) shapes.push_back({most, ways});
  }
  return shapes;
}

}  // namespace

absl::StatusOr<Plan> MakePlan(const PlanRequest& request) {
  RETURN_IF_ERROR(CheckRequest(request));
  Plan plan;
  plan.parameters = request.shape.parameters;
  plan.weight_bytes = request.shape.WeightBytes({0, request.shape.num_layers});
  plan.kv_bytes_per_token = request.shape.KvBytesPerToken(request.shape.num_layers);
  for (const auto& [stages, ways] : Shapes(request))
    plan.choices.push_back(ChoiceMaker(request, stages, ways).Make());
  std::stable_sort(plan.choices.begin(), plan.choices.end(), [](const PlanChoice& a, const PlanChoice& b) {
    if (a.fits != b.fits) return a.fits;
    return a.decode_tokens_per_second > b.decode_tokens_per_second;
  });
  if (!plan.choices.front().fits) {
    const auto most =
        std::max_element(plan.choices.begin(), plan.choices.end(),
                         [](const PlanChoice& a, const PlanChoice& b) { return a.stages < b.stages; });
    return absl::ResourceExhaustedError(absl::StrCat(most->why_not, WhatWouldFit(request)));
  }
  return plan;
}

}  // namespace millrace
