// load_generator: puts one kind of load on a running cluster and prints what it measured as JSON.
#include <cstdio>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "bench/load/load_driver.h"
#include "common/options.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "common/transport/channels.h"
#include "common/transport/credentials.h"

namespace millrace::bench {
namespace {

struct Flags {
  std::string server = "127.0.0.1:50051";
  std::string mode = "steady";
  std::string prompt_tokens = "64";
  std::string output_tokens = "64";
  std::string text_file;
  int64_t sequences = 1;
  int64_t windows = 1;
  int64_t seed = 1;
  LoadOptions load;
  TlsFlags tls;

  void Declare(OptionSet& set) {
    set.AddString("server", &server, "HOST:PORT", "the coordinator's --listen address");
    tls.DeclareClient(set);
    set.AddString("mode", &mode, "NAME",
                  "steady: so many sequences are kept alive; poisson: requests arrive at --rate; one-shot: "
                  "all sequences at once to the end of the last, a round for each window; recompute: one "
                  "sequence, each token of it a request whose prompt is everything before it");
    set.AddInt("sequences", &sequences, 1, 65536, "sequences at a time (steady, one-shot)");
    set.AddDouble("rate", &load.rate, 1e-3, 1e6, "requests a second (poisson)");
    set.AddString("prompt-tokens", &prompt_tokens, "N or N-M", "length of the prompts: random token ids");
    set.AddString("output-tokens", &output_tokens, "N or N-M", "tokens to generate");
    set.AddDouble("long-share", &load.workload.long_share, 0, 1,
                  "this share of the requests has the longest output, the others the shortest; without it "
                  "lengths are uniform");
    set.AddString("text-file", &text_file, "FILE", "prompts are the lines of this file in turn");
    set.AddInt("seed", &seed, 0, INT64_MAX, "of prompts, lengths and arrivals");
    set.AddDuration("warmup", &load.warmup, "before the first window");
    set.AddDuration("window", &load.window, "length of a window (steady, poisson)");
    set.AddInt("windows", &windows, 1, 1000, "windows, one after another");
    set.AddDuration("limit", &load.limit, "give up after so long");
  }

  absl::Status Finish() {
    static const std::map<std::string, LoadMode> kModes = {{"steady", LoadMode::kSteady},
                                                           {"poisson", LoadMode::kPoisson},
                                                           {"one-shot", LoadMode::kOneShot},
                                                           {"recompute", LoadMode::kRecompute}};
    const auto found = kModes.find(mode);
    if (found == kModes.end()) {
      return absl::InvalidArgumentError("--mode: expected steady, poisson, one-shot or recompute");
    }
    load.mode = found->second;
    load.sequences = static_cast<uint32_t>(sequences);
    load.windows = static_cast<uint32_t>(windows);
    load.workload.seed = static_cast<uint64_t>(seed);
    ASSIGN_OR_RETURN(load.workload.prompt_tokens, ParseRange(prompt_tokens));
    ASSIGN_OR_RETURN(load.workload.output_tokens, ParseRange(output_tokens));
    if (text_file.empty()) return absl::OkStatus();
    std::ifstream file(text_file);
    for (std::string line; std::getline(file, line);) {
      if (!line.empty()) load.workload.texts.push_back(line);
    }
    if (load.workload.texts.empty()) {
      return absl::InvalidArgumentError("--text-file " + text_file + ": no lines could be read");
    }
    return absl::OkStatus();
  }
};

absl::StatusOr<nlohmann::json> Generate(const Flags& flags) {
  ASSIGN_OR_RETURN(const TlsOptions tls, flags.tls.Finish());
  ASSIGN_OR_RETURN(const SharedCredentials credentials, Credentials::Load(tls, /*follow=*/false));
  const auto channel = MakeControlChannel(flags.server, credentials);
  LoadOptions options = flags.load;
  ASSIGN_OR_RETURN(const v1::GetModelInfoResponse model, LoadClient(channel, {}).ModelInfo());
  options.workload.vocabulary_size = model.vocabulary_size();
  ASSIGN_OR_RETURN(nlohmann::json report, LoadDriver(channel, options).Run());
  report["mode"] = flags.mode;
  report["sequences"] = flags.sequences;
  report["prompt_tokens"] = flags.prompt_tokens;
  report["output_tokens"] = flags.output_tokens;
  return report;
}

int Main(int argc, char** argv) {
  Flags flags;
  OptionSet set("load_generator", "--server HOST:PORT [options]",
                "Puts load on a running cluster and prints what it measured as JSON.");
  flags.Declare(set);
  const auto outcome = set.Parse(std::vector<std::string>(argv + 1, argv + argc), nullptr);
  if (outcome.ok() && *outcome == OptionSet::Outcome::kHelpShown) return kExitOk;
  const absl::Status usage = outcome.ok() ? flags.Finish() : outcome.status();
  if (!usage.ok()) {
    std::fprintf(stderr, "load_generator: %s\n", std::string(usage.message()).c_str());
    return kExitUsage;
  }
  RaiseFileLimit();
  const absl::StatusOr<nlohmann::json> report = Generate(flags);
  if (!report.ok()) {
    std::fprintf(stderr, "load_generator: %s\n", report.status().ToString().c_str());
    return kExitFailure;
  }
  std::printf("%s\n", report->dump(1).c_str());
  return kExitOk;
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  return millrace::bench::Main(argc, argv);
}
