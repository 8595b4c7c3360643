#include "coordinator/metrics/metrics.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace millrace {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

// Collects families; what is added belongs to the family begun last.
class Writer {
 public:
  Writer& Begin(MetricType type, const char* name, const char* help) {
    families_.push_back({name, help, type, {}});
    return *this;
  }
  Writer& Add(double value, Labels labels = {}) {
    MetricFamily& family = families_.back();
    ClientMetric metric;
    metric.label = std::move(labels);
    if (family.type == MetricType::Counter) metric.counter.value = value;
    if (family.type == MetricType::Gauge) metric.gauge.value = value;
    family.metric.push_back(std::move(metric));
    return *this;
  }
  void AddHistogram(const char* name, const char* help, const Histogram& from) {
    Begin(MetricType::Histogram, name, help);
    ClientMetric metric;
    metric.histogram.sample_count = from.count();
    metric.histogram.sample_sum = from.sum();
    uint64_t cumulative = 0;
    for (size_t i = 0; i < from.bounds().size(); ++i) {
      cumulative += from.bucket(i);
      metric.histogram.bucket.push_back({cumulative, from.bounds()[i]});
    }
    families_.back().metric.push_back(std::move(metric));
  }
  std::vector<MetricFamily> Take() { return std::move(families_); }

 private:
  std::vector<MetricFamily> families_;
};

double Number(uint64_t value) {
  return static_cast<double>(value);
}

void AddLoad(const MetricsSnapshot& snapshot, Writer& writer) {
  const SchedulerLoad& load = snapshot.pipeline.load;
  const double blocks = load.blocks_total;
  writer.Begin(MetricType::Gauge, "vllm:num_requests_running", "Requests that hold KV cache.")
      .Add(load.running);
  writer.Begin(MetricType::Gauge, "vllm:num_requests_waiting", "Requests that wait to run.")
      .Add(Number(load.waiting + snapshot.queued_jobs));
  writer.Begin(MetricType::Gauge, "vllm:kv_cache_usage_perc", "Share of the KV cache blocks in use, 0 to 1.")
      .Add(blocks > 0 ? load.blocks_used / blocks : 0);
  writer
      .Begin(MetricType::Counter, "vllm:prompt_tokens_total",
             "Prompt tokens of requests that began to answer.")
      .Add(Number(load.prompt_tokens));
  writer.Begin(MetricType::Counter, "vllm:generation_tokens_total", "Tokens generated.")
      .Add(Number(load.output_tokens));
  writer
      .Begin(MetricType::Counter, "vllm:num_preemptions_total",
             "Requests that gave up their KV cache and began again.")
      .Add(Number(load.preemptions));
  writer
      .Begin(MetricType::Counter, "vllm:prefix_cache_queries_total",
             "Tokens of requests looked up in the prefix cache.")
      .Add(Number(load.prefix_cache_queries));
  writer.Begin(MetricType::Counter, "vllm:prefix_cache_hits_total", "Of these, tokens found there.")
      .Add(Number(load.prefix_cache_hits));
  writer.Begin(MetricType::Gauge, "microbatches_in_flight", "Microbatches in the ring.").Add(load.in_flight);
}

void AddRequests(const RequestStats& requests, Writer& writer) {
  writer.Begin(MetricType::Counter, "vllm:request_success_total", "Requests that ended, by how they ended.")
      .Add(Number(requests.stopped), {{"finished_reason", "stop"}})
      .Add(Number(requests.length), {{"finished_reason", "length"}})
      .Add(Number(requests.aborted), {{"finished_reason", "abort"}})
      .Add(Number(requests.failed), {{"finished_reason", "error"}});
  writer.AddHistogram("vllm:time_to_first_token_seconds", "Arrival of a request to its first token.",
                      requests.first_token);
  writer.AddHistogram("vllm:inter_token_latency_seconds", "Time between two tokens of a request.",
                      requests.inter_token);
  writer.AddHistogram("vllm:e2e_request_latency_seconds", "Arrival of a request to its end.", requests.whole);
  writer.AddHistogram("vllm:request_queue_time_seconds", "Arrival of a request to its first microbatch.",
                      requests.queue);
  writer.AddHistogram("vllm:request_prefill_time_seconds",
                      "First microbatch of a request to its first token.", requests.prefill);
  writer.AddHistogram("vllm:request_decode_time_seconds", "First token of a request to its last.",
                      requests.decode);
}

Labels StageLabels(size_t stage) {
  return {{"stage", absl::StrCat(stage)}};
}

void AddStages(const PipelineSnapshot& pipeline, Writer& writer) {
  const std::vector<StageSnapshot>& stages = pipeline.stages;
  writer.Begin(MetricType::Counter, "stage_busy_seconds_total", "Time a stage computed, in this epoch.");
  for (size_t i = 0; i < stages.size(); ++i) {
    writer.Add(absl::ToDoubleSeconds(stages[i].total.busy), StageLabels(i));
  }
  writer.Begin(MetricType::Counter, "stage_idle_seconds_total",
               "Time a stage was idle, by cause, in this epoch; all but no_work are bubbles.");
  for (size_t i = 0; i < stages.size(); ++i) {
    for (size_t cause = 0; cause < kNumIdleCauses; ++cause) {
      Labels labels = StageLabels(i);
      labels.push_back({"cause", IdleCauseName(static_cast<IdleCause>(cause))});
      writer.Add(absl::ToDoubleSeconds(stages[i].total.idle.by_cause[cause]), std::move(labels));
    }
  }
  writer.Begin(MetricType::Counter, "stage_preempted_seconds_total",
               "Part of the busy time during which the stage's compute thread had no core, in this epoch.");
  for (size_t i = 0; i < stages.size(); ++i) {
    writer.Add(absl::ToDoubleSeconds(stages[i].total.preempted), StageLabels(i));
  }
  writer.Begin(MetricType::Counter, "stage_microbatches_total",
               "Microbatches a stage has done, in this epoch.");
  for (size_t i = 0; i < stages.size(); ++i) {
    writer.Add(Number(stages[i].total.microbatches), StageLabels(i));
  }
  writer.Begin(MetricType::Counter, "activation_bytes_total",
               "Activations a stage has sent to the next, in this epoch.");
  for (size_t i = 0; i + 1 < stages.size(); ++i) {
    writer.Add(Number(stages[i].activation_bytes_sent), StageLabels(i));
  }
  writer
      .Begin(MetricType::Gauge, "pipeline_bubble_ratio",
             "Share of the time with unfinished requests that stages were idle, in the last 10 seconds.")
      .Add(PipelineUse(pipeline, &StageSnapshot::window).BubbleRatio());
  writer.AddHistogram(
      "hop_seconds",
      "Mean time of a microbatch on one hop, the return through the coordinator counted as one.",
      pipeline.hops);
}

}  // namespace

std::vector<MetricFamily> MakeMetrics(const MetricsSnapshot& snapshot) {
  Writer writer;
  AddLoad(snapshot, writer);
  AddRequests(snapshot.requests, writer);
  AddStages(snapshot.pipeline, writer);
  return writer.Take();
}

}  // namespace millrace
