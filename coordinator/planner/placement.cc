#include "coordinator/planner/placement.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace millrace {
namespace {

absl::Status CheckStages(uint64_t num_stages, uint64_t num_layers) {
  if (num_stages >= 1 && num_stages <= num_layers) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(num_stages, " stages: a model of ", num_layers, " layers can have 1 to ", num_layers));
}

}  // namespace

// best[s][i]: cost of the dearest stage when the first i layers fill s stages. Bellman's recursion over where
// stage s begins.
absl::StatusOr<std::vector<LayerRange>> PlaceLayers(const LayerCosts& costs, uint32_t num_stages) {
  const size_t layers = costs.layers.size();
  if (const absl::Status status = CheckStages(num_stages, layers); !status.ok()) return status;
  std::vector<double> sum(layers + 1, 0.0);
  std::partial_sum(costs.layers.begin(), costs.layers.end(), sum.begin() + 1);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::vector<std::vector<double>> best(num_stages + 1, std::vector<double>(layers + 1, kInfinity));
  std::vector<std::vector<size_t>> begin(num_stages + 1, std::vector<size_t>(layers + 1, 0));
  best[0][0] = 0;
  for (size_t s = 1; s <= num_stages; ++s) {
    const double extra = (s == 1 ? costs.first_stage : 0) + (s == num_stages ? costs.last_stage : 0);
    for (size_t i = s; i <= layers - (num_stages - s); ++i) {
      for (size_t from = s - 1; from < i; ++from) {
        const double dearest = std::max(best[s - 1][from], sum[i] - sum[from] + extra);
        if (dearest < best[s][i]) {
          best[s][i] = dearest;
          begin[s][i] = from;
        }
      }
    }
  }
  std::vector<LayerRange> ranges(num_stages);
  size_t end = layers;
  for (size_t s = num_stages; s >= 1; --s) {
    const size_t from = begin[s][end];
    ranges[s - 1] = {static_cast<uint32_t>(from), static_cast<uint32_t>(end - from)};
    end = from;
  }
  return ranges;
}

absl::StatusOr<std::vector<LayerRange>> PlaceByCounts(const std::vector<int64_t>& counts, uint32_t num_layers,
                                                      uint32_t num_stages) {
  if (const absl::Status status = CheckStages(num_stages, num_layers); !status.ok()) return status;
  if (counts.size() != num_stages) {
    return absl::InvalidArgumentError(
        absl::StrCat("--layers names ", counts.size(), " stages, --stages says ", num_stages));
  }
  std::vector<LayerRange> ranges;
  uint64_t first = 0;
  for (const int64_t count : counts) {
    if (count < 1 || count > num_layers) {
      return absl::InvalidArgumentError(
          absl::StrCat("--layers: a stage of ", count, " layers; each takes 1 to ", num_layers));
    }
    ranges.push_back({static_cast<uint32_t>(first), static_cast<uint32_t>(count)});
    first += static_cast<uint64_t>(count);
    if (first > num_layers) break;
  }
  if (first != num_layers) {
    const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
    return absl::InvalidArgumentError(
        absl::StrCat("--layers add up to ", total, "; the model has ", num_layers, " layers"));
  }
  return ranges;
}

}  // namespace millrace
