// millrace: the client program.
#include <cstdio>
#include <string>
#include <vector>

#include "cli/client.h"
#include "common/log.h"
#include "common/options.h"
#include "common/process.h"

namespace {

struct Command {
  const char* name;
  const char* help;
  int (*run)(const std::vector<std::string>&);
};

constexpr Command kCommands[] = {
    {"generate", "continue a text, token by token", millrace::cli::GenerateCommand},
    {"chat", "talk to the model", millrace::cli::ChatCommand},
    {"tokenize", "show the tokens of a text", millrace::cli::TokenizeCommand},
    {"plan", "predict how a model would run on a cluster", millrace::cli::PlanCommand},
    {"status", "show server, model, load and stages", millrace::cli::StatusCommand},
    {"health", "ask for health: exit code 0 if it is SERVING", millrace::cli::HealthCommand},
    {"drain", "let requests finish before a process is stopped", millrace::cli::DrainCommand},
    {"trace", "record microbatches, to look at in Perfetto", millrace::cli::TraceCommand},
};

void PrintUsage(std::FILE* out) {
  std::fputs("usage: millrace [--die-with-parent] COMMAND [options]\n\nTalks to a Millrace cluster.\n\n",
             out);
  for (const Command& command : kCommands) std::fprintf(out, "  %-10s %s\n", command.name, command.help);
  std::fputs("\nmillrace COMMAND --help tells the options of each.\n", out);
}

}  // namespace

int main(int argc, char** argv) {
  millrace::SetLogName("millrace");
  std::vector<std::string> args(argv + 1, argv + argc);
  if (!args.empty() && args[0] == "--die-with-parent") {
    millrace::DieWithParent();
    args.erase(args.begin());
  }
  if (args.empty()) {
    PrintUsage(stderr);
    return millrace::kExitUsage;
  }
  if (args[0] == "--help" || args[0] == "-h" || args[0] == "help") {
    PrintUsage(stdout);
    return millrace::kExitOk;
  }
  if (args[0] == "--version") {
    std::printf("millrace %s\n", millrace::kVersion);
    return millrace::kExitOk;
  }
  for (const Command& command : kCommands) {
    if (args[0] == command.name) return command.run({args.begin() + 1, args.end()});
  }
  std::fprintf(stderr, "millrace: unknown command '%s'; see millrace --help\n", args[0].c_str());
  return millrace::kExitUsage;
}
