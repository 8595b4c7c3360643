#include "cli/status_view.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace millrace::cli {
namespace {

// Shares of a stage's time in the window, in percent.
struct Shares {
  double busy = 0;       // of all time
  double bubble = 0;     // of the time with work, like the rest
  double preempted = 0;  // part of busy
  double back_pressured = 0, communication = 0, too_few = 0, imbalance = 0, starved = 0;
};

Shares SharesOf(const v1::StageWindow& window) {
  const v1::IdleTime& idle = window.idle();
  const double busy = Seconds(window.busy());
  const double bubble = Seconds(idle.back_pressured()) + Seconds(idle.communication()) +
                        Seconds(idle.too_few_microbatches()) + Seconds(idle.imbalance()) +
                        Seconds(idle.starved());
  const auto percent = [](double part, double whole) { return whole > 0 ? 100 * part / whole : 0.0; };
  const double with_work = busy + bubble;
  Shares shares;
  shares.busy = percent(busy, with_work + Seconds(idle.no_work()));
  shares.bubble = percent(bubble, with_work);
  shares.preempted = percent(Seconds(window.preempted()), with_work);
  shares.back_pressured = percent(Seconds(idle.back_pressured()), with_work);
  shares.communication = percent(Seconds(idle.communication()), with_work);
  shares.too_few = percent(Seconds(idle.too_few_microbatches()), with_work);
  shares.imbalance = percent(Seconds(idle.imbalance()), with_work);
  shares.starved = percent(Seconds(idle.starved()), with_work);
  return shares;
}

double Rate(uint64_t before, uint64_t now, double seconds) {
  return seconds > 0 && now >= before ? static_cast<double>(now - before) / seconds : 0;
}

struct TokenRates {
  double generated, prompt;
};

TokenRates RatesOf(const WatchInput& input) {
  return {Rate(input.before.generated_tokens_total(), input.load.generated_tokens_total(), input.seconds),
          Rate(input.before.prompt_tokens_total(), input.load.prompt_tokens_total(), input.seconds)};
}

std::string State(const v1::GetServerInfoResponse& server) {
  return absl::StrCat(StateName(server.state()), server.state_detail().empty() ? "" : ": ",
                      server.state_detail());
}

std::string StageRow(const v1::StageLoad& stage, double window_seconds) {
  const Shares shares = SharesOf(stage.window());
  const std::string layers =
      absl::StrCat(stage.first_layer(), "-", stage.first_layer() + stage.num_layers() - 1);
  const double rows = window_seconds > 0 ? static_cast<double>(stage.window().rows()) / window_seconds : 0.0;
  return absl::StrFormat(
      "%-6d %-8s %6.1f%% %6.1f%% | %6.1f%% %6.1f%% %6.1f%% %6.1f%% %6.1f%% | %6.1f%% %8.1f  %s",
      stage.stage(), layers, shares.busy, shares.bubble, shares.communication, shares.too_few,
      shares.imbalance, shares.starved, shares.back_pressured, shares.preempted, rows, stage.worker());
}

}  // namespace

double Seconds(const google::protobuf::Duration& duration) {
  return static_cast<double>(duration.seconds()) + duration.nanos() * 1e-9;
}

const char* StateName(v1::GetServerInfoResponse::State state) {
  switch (state) {
    case v1::GetServerInfoResponse::STATE_WAITING_FOR_WORKERS:
      return "waiting for workers";
    case v1::GetServerInfoResponse::STATE_LOADING:
      return "loading";
    case v1::GetServerInfoResponse::STATE_SERVING:
      return "serving";
    case v1::GetServerInfoResponse::STATE_DRAINING:
      return "draining";
    case v1::GetServerInfoResponse::STATE_STOPPING:
      return "stopping";
    default:
      return "unknown";
  }
}

std::vector<std::string> WatchTable(const WatchInput& input) {
  const v1::GetLoadResponse& load = input.load;
  const TokenRates rates = RatesOf(input);
  const double window = std::min(Seconds(load.window()), Seconds(input.server.uptime()));
  std::vector<std::string> lines = {
      absl::StrFormat("server     Millrace %s, %s, up %.0f s, epoch %d", input.server.version(),
                      State(input.server), Seconds(input.server.uptime()), load.epoch()),
      absl::StrFormat("requests   %d running, %d queued, %d finished, %d failed", load.running_requests(),
                      load.queued_requests(), load.requests_finished_total(), load.requests_failed_total()),
      absl::StrFormat("tokens/s   %.1f generated, %.1f prompt", rates.generated, rates.prompt),
      absl::StrFormat("KV cache   %d of %d blocks", load.kv_blocks_used(), load.kv_blocks_total()),
      absl::StrFormat("pipeline   %d microbatches in flight, mean hop %.3f ms", load.microbatches_in_flight(),
                      Seconds(load.mean_hop()) * 1e3),
      absl::StrFormat("bubbles    %.1f%% in the last %.0f s, %.1f%% since the epoch began",
                      load.window_bubble_ratio() * 100, Seconds(load.window()), load.bubble_ratio() * 100)};
  if (load.stages_size() == 0) return lines;
  lines.push_back("");
  lines.push_back(absl::StrFormat("%-6s %-8s %7s %7s | %7s %7s %7s %7s %7s | %7s %8s  %s", "stage", "layers",
                                  "busy", "bubble", "on way", "too few", "imbal.", "starved", "handing",
                                  "preempt", "rows/s", "worker"));
  for (const v1::StageLoad& stage : load.stages()) lines.push_back(StageRow(stage, window));
  return lines;
}

std::string WatchLine(const WatchInput& input) {
  const v1::GetLoadResponse& load = input.load;
  std::string line = absl::StrFormat("%s, %d running, %d queued, %.1f tokens/s, %d in flight, bubbles %.1f%%",
                                     State(input.server), load.running_requests(), load.queued_requests(),
                                     RatesOf(input).generated, load.microbatches_in_flight(),
                                     load.window_bubble_ratio() * 100);
  for (const v1::StageLoad& stage : load.stages()) {
    const Shares shares = SharesOf(stage.window());
    absl::StrAppendFormat(&line, "; stage %d busy %.1f%% bubble %.1f%%", stage.stage(), shares.busy,
                          shares.bubble);
  }
  return line;
}

}  // namespace millrace::cli
