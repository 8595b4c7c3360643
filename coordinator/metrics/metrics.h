// What Prometheus is told: names, help texts and labels of every metric.
#pragma once

#include <vector>

#include "coordinator/frontend/request_stats.h"
#include "coordinator/pipeline/engine_port.h"
#include "prometheus/metric_family.h"

namespace millrace {

// One look at the coordinator.
struct MetricsSnapshot {
  PipelineSnapshot pipeline;
  RequestStats requests;
  uint64_t queued_jobs = 0;  // requests that wait for the text thread
};

// Names of vLLM (vllm:...) where the meaning is the same, and ours. Counters of stages begin again with each
// epoch, as counters of a restarted process do.
std::vector<prometheus::MetricFamily> MakeMetrics(const MetricsSnapshot& snapshot);

}  // namespace millrace
