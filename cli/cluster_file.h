// A cluster as a YAML file says it: for `millrace plan`.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/planner/plan.h"

namespace millrace::cli {

// INVALID_ARGUMENT: one line with the file, and the line and column of what is wrong. NOT_FOUND: no such
// file.
//
//   workers:
//     - {gpu: A100-80, count: 4, efficiency: 0.6}   # published figures of a device, times an efficiency (1)
//     - {name: big, memory: 64GB, gflops: 400, gb_per_second: 40}
//     - name: measured
//       memory: 16GB
//       kv_memory: 1GiB
//       profile: {layer_elements: 3.5e6, overhead_seconds: 1e-6, layer: [[rows, sequences, context, seconds],
//       ...], head: [...]}
//   link: {latency: 100us, gb_per_second: 1.25}
absl::StatusOr<PlannedCluster> ReadClusterFile(const std::string& path);

// The same for text; `name` stands for the path.
absl::StatusOr<PlannedCluster> ParseCluster(const std::string& text, const std::string& name);

// Devices by their published figures: "H100:4", "A100-80:2,L40S". Links are the defaults of PlannedCluster.
// INVALID_ARGUMENT.
absl::StatusOr<PlannedCluster> ClusterOfGpus(const std::string& text);

// What ReadClusterFile reads back as the same. INVALID_ARGUMENT: the file cannot be written.
absl::Status WriteClusterFile(const PlannedCluster& cluster, const std::string& path);

}  // namespace millrace::cli
