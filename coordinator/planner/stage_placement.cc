#include "coordinator/planner/stage_placement.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/options.h"
#include "common/status_macros.h"
#include "coordinator/planner/stage_costs.h"

namespace millrace {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNoise = 1.05;           // measured times closer than this are equal
constexpr double kWorthMoving = 1.10;     // a new placement must be faster by this to displace a running one
constexpr double kWorthMeasuring = 1.02;  // a cut must be faster by this to displace the one by elements

// Seconds of the reference batch on one worker: fixed + element * (matrix elements) + layer * (layers) +
// head.
struct WorkerSpeed {
  double fixed = 0;
  double element = 0;
  double layer = 0;
  double head = 0;
};

WorkerSpeed SpeedOf(const WorkerProfile& profile, const ModelShape& shape, const BatchFeatures& batch) {
  const StageCost cost = MakeStageCost(profile, shape, {shape.num_layers - 1, 1});
  WorkerSpeed speed;
  speed.fixed = cost.fixed;
  speed.element = InterpolateCost(cost.rows, batch.rows()) / shape.layer_elements.back();
  speed.layer =
      cost.decode_attention * batch.decode_attention + cost.prefill_attention * batch.prefill_attention;
  speed.head = InterpolateCost(cost.sampled, batch.sampled_rows);
  return speed;
}

WorkerSpeed SpeedByShape(const ModelShape& shape, const BatchFeatures& batch) {
  WorkerSpeed speed;
  speed.element = batch.rows();
  speed.head = shape.output_elements * batch.sampled_rows;
  return speed;
}

WorkerSpeed Mean(const std::vector<WorkerSpeed>& speeds) {
  WorkerSpeed mean;
  const double n = static_cast<double>(speeds.size());
  for (const WorkerSpeed& speed : speeds) {
    mean.fixed += speed.fixed / n;
    mean.element += speed.element / n;
    mean.layer += speed.layer / n;
    mean.head += speed.head / n;
  }
  return mean;
}

class Placer {
 public:
  explicit Placer(const PlacementInput& input);
  absl::StatusOr<StagePlacement> Place();

 private:
  // Who holds what.
  struct Choice {
    std::vector<LayerRange> ranges;
    std::vector<size_t> workers;
    double slowest = kInfinity;
  };

  void MakeSpeeds();
  void MakeEqual();
  double Cost(size_t worker, uint32_t from, uint32_t to) const;
  uint64_t Need(const PlacedWorker& worker, const LayerRange& layers) const;
  bool Fits(size_t worker, uint32_t from, uint32_t to) const;
  bool MayHold(size_t worker, size_t stage) const;
  bool AllAlike() const;
  void Rate(Choice& choice) const;
  std::vector<size_t> InOrder() const;
  Choice BestCut(const std::vector<size_t>& workers) const;
  Choice BestOfAll() const;
  Choice Chosen(const Choice& best) const;
  Choice Previous() const;
  absl::Status WhyNot() const;
  StagePlacement Report(const Choice& choice, const Choice& best) const;

  const PlacementInput& input_;
  const ModelShape& shape_;
  const size_t stages_;
  const uint32_t layers_;
  const BatchFeatures batch_;
  bool measured_ = false;
  std::vector<WorkerSpeed> speeds_;
  std::vector<double> elements_;       // before layer i
  std::vector<uint64_t> layer_bytes_;  // before layer i
};

Placer::Placer(const PlacementInput& input)
    : input_(input),
      shape_(*input.shape),
      stages_(input.workers.size()),
      layers_(shape_.num_layers),
      batch_(ReferenceBatch(input.workload)) {
  elements_.assign(layers_ + 1, 0.0);
  std::partial_sum(shape_.layer_elements.begin(), shape_.layer_elements.end(), elements_.begin() + 1);
  layer_bytes_.assign(layers_ + 1, 0);
  std::partial_sum(shape_.layer_bytes.begin(), shape_.layer_bytes.end(), layer_bytes_.begin() + 1);
  MakeSpeeds();
  MakeEqual();
}

void Placer::MakeSpeeds() {
  std::vector<WorkerSpeed> known;
  for (const PlacedWorker& worker : input_.workers) {
    if (worker.profile.has_value()) known.push_back(SpeedOf(*worker.profile, shape_, batch_));
  }
  measured_ = !known.empty();
  const WorkerSpeed otherwise = measured_ ? Mean(known) : SpeedByShape(shape_, batch_);
  size_t next = 0;
  for (const PlacedWorker& worker : input_.workers) {
    speeds_.push_back(worker.profile.has_value() ? known[next++] : otherwise);
  }
}

// Groups of neighbours in speed, each within the noise of its fastest, get their mean.
void Placer::MakeEqual() {
  const auto whole = [&](size_t worker) { return Cost(worker, 0, layers_); };
  std::vector<size_t> order(stages_);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return whole(a) < whole(b); });
  for (size_t begin = 0; begin < order.size();) {
    std::vector<WorkerSpeed> group;
    size_t end = begin;
    while (end < order.size() && whole(order[end]) <= kNoise * whole(order[begin])) {
      group.push_back(speeds_[order[end++]]);
    }
    // A worker that takes no time at all is equal to nobody.
    if (end == begin) end = begin + 1;
    const WorkerSpeed mean = group.empty() ? speeds_[order[begin]] : Mean(group);
    for (size_t i = begin; i < end; ++i) speeds_[order[i]] = mean;
    begin = end;
  }
}

double Placer::Cost(size_t worker, uint32_t from, uint32_t to) const {
  const WorkerSpeed& speed = speeds_[worker];
  return speed.fixed + speed.element * (elements_[to] - elements_[from]) + speed.layer * (to - from) +
         (to == layers_ ? speed.head : 0);
}

uint64_t Placer::Need(const PlacedWorker& worker, const LayerRange& layers) const {
  uint64_t kv = shape_.KvBytesPerToken(layers.count) * input_.context_tokens;
  if (worker.kv_memory_bytes > 0) kv = std::min(kv, worker.kv_memory_bytes);
  const uint32_t end = layers.first + layers.count;
  const uint64_t weights =
      layer_bytes_[end] - layer_bytes_[layers.first] + shape_.EndBytes(layers.first == 0, end == layers_);
  return weights + kv + shape_.ActivationBytes(layers, input_.max_rows, input_.context_tokens);
}

bool Placer::Fits(size_t worker, uint32_t from, uint32_t to) const {
  const PlacedWorker& placed = input_.workers[worker];
  return placed.memory_bytes == 0 || Need(placed, {from, to - from}) <= placed.memory_bytes;
}

bool Placer::MayHold(size_t worker, size_t stage) const {
  const std::optional<uint32_t>& pinned = input_.workers[worker].stage;
  return !pinned.has_value() || *pinned == stage;
}

// Nothing is gained by trying orders of workers that cannot be told apart.
bool Placer::AllAlike() const {
  const PlacedWorker& a = input_.workers.front();
  for (size_t i = 1; i < stages_; ++i) {
    const PlacedWorker& b = input_.workers[i];
    if (speeds_[i].element != speeds_[0].element || speeds_[i].head != speeds_[0].head ||
        a.memory_bytes != b.memory_bytes || a.kv_memory_bytes != b.kv_memory_bytes) {
      return false;
    }
  }
  return true;
}

void Placer::Rate(Choice& choice) const {
  choice.slowest = 0;
  for (size_t s = 0; s < stages_; ++s) {
    const LayerRange& range = choice.ranges[s];
    const uint32_t end = range.first + range.count;
    const double cost =
        Fits(choice.workers[s], range.first, end) ? Cost(choice.workers[s], range.first, end) : kInfinity;
    choice.slowest = std::max(choice.slowest, cost);
  }
}

// Pinned workers where they are pinned; the others, as they come, in the stages left.
std::vector<size_t> Placer::InOrder() const {
  std::vector<size_t> workers(stages_, stages_);
  for (size_t w = 0; w < stages_; ++w) {
    if (input_.workers[w].stage.has_value()) workers[*input_.workers[w].stage] = w;
  }
  size_t stage = 0;
  for (size_t w = 0; w < stages_; ++w) {
    if (input_.workers[w].stage.has_value()) continue;
    while (workers[stage] != stages_) ++stage;
    workers[stage] = w;
  }
  return workers;
}

// best[s][i]: time of the slowest stage when the first i layers fill s stages. Bellman's recursion over where
// stage s begins.
Placer::Choice Placer::BestCut(const std::vector<size_t>& workers) const {
  std::vector<std::vector<double>> best(stages_ + 1, std::vector<double>(layers_ + 1, kInfinity));
  std::vector<std::vector<uint32_t>> begin(stages_ + 1, std::vector<uint32_t>(layers_ + 1, 0));
  best[0][0] = 0;
  for (size_t s = 1; s <= stages_; ++s) {
    for (uint32_t to = static_cast<uint32_t>(s); to <= layers_ - (stages_ - s); ++to) {
      for (uint32_t from = static_cast<uint32_t>(s) - 1; from < to; ++from) {
        const double slowest = std::max(best[s - 1][from], Cost(workers[s - 1], from, to));
        if (slowest >= best[s][to] || !Fits(workers[s - 1], from, to)) continue;
        best[s][to] = slowest;
        begin[s][to] = from;
      }
    }
  }
  Choice choice;
  choice.workers = workers;
  choice.ranges.resize(stages_);
  choice.slowest = best[stages_][layers_];
  uint32_t end = layers_;
  for (size_t s = stages_; s >= 1; --s) {
    const uint32_t from = begin[s][end];
    choice.ranges[s - 1] = {from, end - from};
    end = from;
  }
  return choice;
}

// The same over sets of workers in place of numbers of stages: the workers of the first stages, in any order.
Placer::Choice Placer::BestOfAll() const {
  const Choice in_order = BestCut(InOrder());
  const double steps = std::ldexp(1.0, static_cast<int>(std::min<size_t>(stages_, 60))) *
                       static_cast<double>(stages_) * layers_ * layers_ / 2;
  if (stages_ == 1 || steps > kMaxPlacementSteps || AllAlike()) return in_order;
  const size_t sets = size_t{1} << stages_;
  const size_t width = layers_ + size_t{1};
  struct Entry {
    double slowest = kInfinity;
    uint32_t from = 0;
    uint32_t worker = 0;
  };
  std::vector<Entry> table(sets * width);
  table[0].slowest = 0;
  for (size_t set = 1; set < sets; ++set) {
    const size_t stage = static_cast<size_t>(__builtin_popcountll(set)) - 1;
    for (uint32_t w = 0; w < stages_; ++w) {
      if ((set >> w & 1) == 0 || !MayHold(w, stage)) continue;
      const Entry* before = &table[(set ^ size_t{1} << w) * width];
      for (size_t to = stage + 1; to <= layers_; ++to) {
        Entry& entry = table[set * width + to];
        for (size_t from = stage; from < to; ++from) {
          const double slowest =
              std::max(before[from].slowest, Cost(w, static_cast<uint32_t>(from), static_cast<uint32_t>(to)));
          if (slowest >= entry.slowest || !Fits(w, static_cast<uint32_t>(from), static_cast<uint32_t>(to)))
            continue;
          entry = {slowest, static_cast<uint32_t>(from), w};
        }
      }
    }
  }
  const Entry& last = table[sets * width - 1];
  // Another order must be worth it.
  if (in_order.slowest <= last.slowest * (1 + 1e-9)) return in_order;
  Choice choice;
  choice.ranges.resize(stages_);
  choice.workers.resize(stages_);
  choice.slowest = last.slowest;
  uint32_t end = layers_;
  size_t set = sets - 1;
  for (size_t s = stages_; s >= 1; --s) {
    const Entry& entry = table[set * width + end];
    choice.ranges[s - 1] = {entry.from, end - entry.from};
    choice.workers[s - 1] = entry.worker;
    set ^= size_t{1} << entry.worker;
    end = entry.from;
  }
  return choice;
}

// The best of all, or the cut by elements in the order of the workers, if that is nearly as good.
Placer::Choice Placer::Chosen(const Choice& best) const {
  if (!measured_) return best;
  LayerCosts by_elements{shape_.layer_elements, 0,
                         shape_.output_elements * batch_.sampled_rows / batch_.rows()};
  absl::StatusOr<std::vector<LayerRange>> ranges = PlaceLayers(by_elements, static_cast<uint32_t>(stages_));
  if (!ranges.ok()) return best;
  Choice plain;
  plain.ranges = *std::move(ranges);
  plain.workers = InOrder();
  Rate(plain);
  return plain.slowest <= best.slowest * kWorthMeasuring ? plain : best;
}

// Those who stay where they were, the others in the gaps as they come. REQUIRES: input_.previous is not
// empty.
Placer::Choice Placer::Previous() const {
  Choice choice;
  choice.ranges = input_.previous;
  choice.workers.assign(stages_, stages_);
  std::vector<bool> used(stages_, false);
  for (size_t s = 0; s < stages_; ++s) {
    const std::optional<size_t>& worker = input_.previous_worker[s];
    if (!worker.has_value() || used[*worker] || !MayHold(*worker, s)) continue;
    choice.workers[s] = *worker;
    used[*worker] = true;
  }
  for (size_t s = 0; s < stages_; ++s) {
    for (size_t w = 0; w < stages_ && choice.workers[s] == stages_; ++w) {
      if (used[w] || !MayHold(w, s)) continue;
      choice.workers[s] = w;
      used[w] = true;
    }
    if (choice.workers[s] == stages_) return choice;  // as slow as can be: not taken
  }
  Rate(choice);
  return choice;
}

// Of the cut that memory was not asked about: the stage that lacks most.
absl::Status Placer::WhyNot() const {
  std::vector<LayerRange> ranges = input_.fixed;
  if (ranges.empty()) {
    ASSIGN_OR_RETURN(ranges, PlaceLayers({shape_.layer_elements, 0, shape_.output_elements},
                                         static_cast<uint32_t>(stages_)));
  }
  const std::vector<size_t> workers = InOrder();
  size_t worst = 0;
  double lacking = -kInfinity;
  for (size_t s = 0; s < stages_; ++s) {
    const PlacedWorker& worker = input_.workers[workers[s]];
    if (worker.memory_bytes == 0) continue;
    const double lacks =
        static_cast<double>(Need(worker, ranges[s])) - static_cast<double>(worker.memory_bytes);
    if (lacks > lacking) {
      lacking = lacks;
      worst = s;
    }
  }
  const PlacedWorker& worker = input_.workers[workers[worst]];
  const uint64_t weights = shape_.WeightBytes(ranges[worst]);
  const uint64_t activations = shape_.ActivationBytes(ranges[worst], input_.max_rows, input_.context_tokens);
  const uint64_t need = Need(worker, ranges[worst]);
  return absl::ResourceExhaustedError(absl::StrCat(
      "the model does not fit on ", stages_, stages_ == 1 ? " worker" : " workers", ": stage ", worst,
      " with ", ranges[worst].count, " layers needs ", FormatBytes(need), " (weights ", FormatBytes(weights),
      ", KV cache ", FormatBytes(need - weights - activations), ", activations ", FormatBytes(activations),
      "), its worker has ", FormatBytes(worker.memory_bytes)));
}

StagePlacement Placer::Report(const Choice& choice, const Choice& best) const {
  StagePlacement placement;
  placement.ranges = choice.ranges;
  placement.workers = choice.workers;
  placement.measured = measured_;
  const auto ratio = [&](const Choice& of, std::vector<double>* seconds) {
    double total = 0;
    double slowest = 0;
    for (size_t s = 0; s < stages_; ++s) {
      const double cost = Cost(of.workers[s], of.ranges[s].first, of.ranges[s].first + of.ranges[s].count);
      if (seconds != nullptr) seconds->push_back(measured_ ? cost : 0);
      total += cost;
      slowest = std::max(slowest, cost);
    }
    return total > 0 ? slowest * static_cast<double>(stages_) / total : 1;
  };
  placement.max_over_mean = ratio(choice, &placement.seconds);
  placement.bound = std::min(placement.max_over_mean, ratio(best, nullptr));
  return placement;
}

absl::StatusOr<StagePlacement> Placer::Place() {
  const Choice best = BestOfAll();
  if (!input_.fixed.empty()) {
    Choice fixed;
    fixed.ranges = input_.fixed;
    fixed.workers = InOrder();
    Rate(fixed);
    if (fixed.slowest == kInfinity) return WhyNot();
    return Report(fixed, best.slowest < kInfinity ? best : fixed);
  }
  if (best.slowest == kInfinity) return WhyNot();
  const Choice chosen = Chosen(best);
  if (!input_.previous.empty()) {
    const Choice previous = Previous();
    if (previous.slowest <= chosen.slowest * kWorthMoving) return Report(previous, best);
  }
  return Report(chosen, best);
}

}  // namespace

absl::StatusOr<StagePlacement> PlaceStages(const PlacementInput& input) {
  const size_t stages = input.workers.size();
  if (stages == 0 || stages > input.shape->num_layers) {
    return absl::InvalidArgumentError(absl::StrCat(stages, " stages: a model of ", input.shape->num_layers,
                                                   " layers can have 1 to ", input.shape->num_layers));
  }
  std::vector<bool> taken(stages, false);
  for (const PlacedWorker& worker : input.workers) {
    if (!worker.stage.has_value()) continue;
    if (*worker.stage >= stages || taken[*worker.stage]) {
      return absl::InvalidArgumentError(
          absl::StrCat("stage ", *worker.stage, " is asked for twice, or is not there"));
    }
    taken[*worker.stage] = true;
  }
  return Placer(input).Place();
}

}  // namespace millrace
