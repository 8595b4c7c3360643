#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/status_view.h"
#include "common/clock.h"

namespace millrace::cli {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(100);
constexpr absl::Duration kRefresh = absl::Seconds(1);
constexpr absl::Duration kCallTimeout = absl::Seconds(5);

struct Answers {
  v1::GetServerInfoResponse server;
  v1::GetModelInfoResponse model;
  v1::GetLoadResponse load;
};

std::chrono::system_clock::time_point CallDeadline() {
  return std::chrono::system_clock::now() + absl::ToChronoMilliseconds(kCallTimeout);
}

grpc::Status Ask(Client& client, Answers& answers) {
  grpc::ClientContext server, model, load;
  for (grpc::ClientContext* context : {&server, &model, &load}) context->set_deadline(CallDeadline());
  grpc::Status status = client.control->GetServerInfo(&server, {}, &answers.server);
  if (status.ok()) status = client.control->GetModelInfo(&model, {}, &answers.model);
  if (status.ok()) status = client.control->GetLoad(&load, {}, &answers.load);
  return status;
}

// Asks until the server serves. Progress goes to standard error whenever it changes.
grpc::Status WaitUntilServing(Client& client, absl::Duration timeout, Answers& answers) {
  const absl::Time deadline = Clock::Steady().Now() + timeout;
  std::string said;
  while (true) {
    const grpc::Status status = Ask(client, answers);
    if (status.ok() && answers.server.state() == v1::GetServerInfoResponse::STATE_SERVING) return status;
    const std::string now =
        status.ok() ? absl::StrCat(StateName(answers.server.state()), ": ", answers.server.state_detail())
                    : "no answer yet";
    if (now != said) std::fprintf(stderr, "%s\n", now.c_str());
    said = now;
    if (Clock::Steady().Now() >= deadline) {
      return grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED,
                          absl::StrCat("not serving after ", absl::FormatDuration(timeout), " (", said, ")"));
    }
    absl::SleepFor(kPoll);
  }
}

// What a stage that is not cut into shards holds, its own line says.
void PrintShards(const v1::StageLoad& stage) {
  if (stage.shards_size() < 2) return;
  for (int i = 0; i < stage.shards_size(); ++i) {
    const v1::ShardLoad& shard = stage.shards(i);
    std::printf("       %-10s %12s %12s %12s\n", absl::StrCat("shard ", i).c_str(),
                FormatBytes(shard.weight_bytes()).c_str(), FormatBytes(shard.kv_bytes()).c_str(),
                FormatBytes(shard.activation_bytes()).c_str());
  }
}

void PrintStages(const v1::GetLoadResponse& load) {
  std::printf("\n%-6s %-10s %12s %12s %12s %8s %8s  %s\n", "stage", "layers", "weights", "KV cache",
              "activations", "busy", "bubble", "worker");
  for (const v1::StageLoad& stage : load.stages()) {
    const std::string layers =
        absl::StrCat(stage.first_layer(), "-", stage.first_layer() + stage.num_layers() - 1);
    std::printf("%-6u %-10s %12s %12s %12s %7.1f%% %7.1f%%  %s, %s, %s, %u %s, hop by %s\n", stage.stage(),
                layers.c_str(), FormatBytes(stage.weight_bytes()).c_str(),
                FormatBytes(stage.kv_bytes()).c_str(), FormatBytes(stage.activation_bytes()).c_str(),
                stage.busy_share() * 100, stage.bubble_ratio() * 100, stage.worker().c_str(),
                stage.numeric_class().c_str(), stage.kernels().c_str(), stage.threads(),
                stage.threads() == 1 ? "thread" : "threads", stage.hop().c_str());
    PrintShards(stage);
  }
}

// Predicted before anything ran.
void PrintPlacement(const v1::GetLoadResponse& load) {
  if (load.predicted_imbalance() == 0) return;
  std::vector<std::string> seconds;
  for (const v1::StageLoad& stage : load.stages()) {
    if (stage.predicted_seconds() > 0) {
      seconds.push_back(absl::StrFormat("%.2f ms", stage.predicted_seconds() * 1e3));
    }
  }
  std::printf("\nplacement  slowest / mean stage %.3f, whole layers allow %.3f; 16 decodes take %s\n",
              load.predicted_imbalance(), load.imbalance_bound(),
              seconds.empty() ? "(not measured)" : absl::StrJoin(seconds, ", ").c_str());
}

void Print(const Answers& answers) {
  const v1::GetLoadResponse& load = answers.load;
  std::printf("server     Millrace %s, %s%s%s, up %.0f s\n", answers.server.version().c_str(),
              StateName(answers.server.state()), answers.server.state_detail().empty() ? "" : ": ",
              answers.server.state_detail().c_str(), Seconds(answers.server.uptime()));
  std::printf("model      %s (%s), %u layers, context %u, weights %s, KV %s per token\n",
              answers.model.name().c_str(), answers.model.architecture().c_str(), answers.model.layers(),
              answers.model.context_tokens(), FormatBytes(answers.model.weight_bytes()).c_str(),
              FormatBytes(answers.model.kv_bytes_per_token()).c_str());
  std::printf("requests   %u running, %u queued, %lu finished, %lu failed\n", load.running_requests(),
              load.queued_requests(), static_cast<unsigned long>(load.requests_finished_total()),
              static_cast<unsigned long>(load.requests_failed_total()));
  std::printf("tokens     %lu prompt, %lu generated\n",
              static_cast<unsigned long>(load.prompt_tokens_total()),
              static_cast<unsigned long>(load.generated_tokens_total()));
  std::printf(
      "KV cache   %u of %u blocks of %u tokens in use, %u kept for later prompts that begin the same\n",
      load.kv_blocks_used(), load.kv_blocks_total(), load.kv_block_tokens(), load.kv_blocks_cached());
  if (load.stages_size() > 0) {
    PrintStages(load);
    PrintPlacement(load);
  }
}

// Draws over what it drew before; lines that do not fit the terminal are cut, as a wrapped line would be two.
class Screen {
 public:
  void Draw(const std::vector<std::string>& lines) {
    if (drawn_ > 0) std::printf("\x1b[%zuF\x1b[J", drawn_);
    winsize size{};
    const bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    for (const std::string& line : lines) {
      std::printf("%s\n", (known ? line.substr(0, size.ws_col) : line).c_str());
    }
    std::fflush(stdout);
    drawn_ = lines.size();
  }

 private:
  size_t drawn_ = 0;
};

// Until Ctrl-C. A server that does not answer is asked again, once it has answered.
int Watch(Client& client, const ServerFlags& flags) {
  const bool terminal = isatty(STDOUT_FILENO) == 1;
  Screen screen;
  WatchInput input;
  absl::Time last = absl::InfinitePast();
  client.HoldStops();
  do {
    Answers answers;
    const grpc::Status status = Ask(client, answers);
    if (client.stopped()) break;
    const absl::Time now = Clock::Steady().Now();
    const bool first = last == absl::InfinitePast();
    if (!status.ok() && first) return ReportStatus(status, flags);
    std::vector<std::string> lines = {
        absl::StrCat("no answer from ", flags.server, ": ", status.error_message())};
    if (status.ok()) {
      input.before = first ? answers.load : input.load;
      input.seconds = first ? 0 : absl::ToDoubleSeconds(now - last);
      input.server = std::move(answers.server);
      input.load = std::move(answers.load);
      last = now;
      if (terminal) lines = WatchTable(input);
      if (!terminal) lines = {WatchLine(input)};
      if (flags.json) lines = {ToJson(input.load)};
    }
    if (terminal && !flags.json) {
      screen.Draw(lines);
    } else {
      std::printf("%s\n", lines.front().c_str());
      std::fflush(stdout);
    }
  } while (!client.WaitForStop(kRefresh));
  return kExitOk;
}

}  // namespace

int StatusCommand(const std::vector<std::string>& args) {
  ServerFlags flags;
  absl::Duration wait = absl::ZeroDuration();
  OptionSet set("millrace status", "[options]", "Shows the server, the model, the load and the stages.");
  flags.Declare(set);
  bool watch = false;
  set.AddBool("watch", &watch, "show the load and the bubbles each second until Ctrl-C");
  set.AddDuration("wait", &wait, "wait until the server serves, at most so long");
  const auto outcome = set.Parse(args, nullptr);
  if (!outcome.ok()) return ReportUsage("status", outcome.status());
  if (*outcome == OptionSet::Outcome::kHelpShown) return kExitOk;
  if (const absl::Status tls = flags.Load(); !tls.ok()) return ReportUsage("status", tls);
  Client client(flags);
  Answers answers;
  const grpc::Status status =
      wait > absl::ZeroDuration() ? WaitUntilServing(client, wait, answers) : Ask(client, answers);
  if (!status.ok()) return ReportStatus(status, flags);
  if (watch) return Watch(client, flags);
  if (flags.json) {
    std::printf("{\"server\": %s, \"model\": %s, \"load\": %s}\n", ToJson(answers.server).c_str(),
                ToJson(answers.model).c_str(), ToJson(answers.load).c_str());
  } else {
    Print(answers);
  }
  return kExitOk;
}

}  // namespace millrace::cli
