#include <cstdio>
#include <iostream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "cli/client.h"

namespace millrace::cli {
namespace {

void PrintText(const v1::GenerateEvent& event) {
  if (!event.has_tokens()) return;
  std::fputs(event.tokens().text().c_str(), stdout);
  std::fflush(stdout);
}

void PrintJson(const v1::GenerateEvent& event) {
  std::puts(ToJson(event).c_str());
  std::fflush(stdout);
}

// A terminal gets a last line break and the summary; a pipe gets the text alone.
int Finish(const StreamOutcome& outcome, const ServerFlags& flags) {
  if (!flags.json) std::puts("");
  if (!outcome.status.ok()) return ReportStatus(outcome.status, flags);
  if (!flags.json) std::fprintf(stderr, "(%s)\n", Summary(outcome.finished).c_str());
  return kExitOk;
}

v1::ChatMessage* AddMessage(v1::GenerateRequest& request, const std::string& role,
                            const std::string& content) {
  v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role(role);
  message->set_content(content);
  return message;
}

// A conversation on standard input, one line a turn, until it ends.
int Converse(Client& client, v1::GenerateRequest request, const GenerateFlags& generate,
             const ServerFlags& flags) {
  std::string line;
  while (std::fputs("> ", stderr), std::getline(std::cin, line)) {
    if (line.empty()) continue;
    AddMessage(request, "user", line);
    const StreamOutcome outcome =
        RunGenerate(client, request, generate.timeout(), flags.json ? PrintJson : PrintText);
    if (const int code = Finish(outcome, flags); code != kExitOk) {
      // A cancelled answer ends the turn, not the conversation.
      if (outcome.status.error_code() != grpc::StatusCode::CANCELLED) return code;
    }
    AddMessage(request, "assistant", outcome.text);
  }
  std::fputs("\n", stderr);
  return kExitOk;
}

}  // namespace

int GenerateCommand(const std::vector<std::string>& args) {
  ServerFlags flags;
  GenerateFlags generate;
  bool literal = false;
  OptionSet set("millrace generate", "[options] PROMPT   (PROMPT - reads standard input)",
                "Continues a text, token by token.");
  flags.Declare(set);
  generate.Declare(set);
  set.AddBool("literal", &literal, "control tokens spelt out in the prompt are plain text");
  std::vector<std::string> words;
  const auto outcome = set.Parse(args, &words);
  if (!outcome.ok()) return ReportUsage("generate", outcome.status());
  if (*outcome == OptionSet::Outcome::kHelpShown) return kExitOk;
  if (const absl::Status tls = flags.Load(); !tls.ok()) return ReportUsage("generate", tls);
  if (words.empty())
    return ReportUsage("generate", absl::InvalidArgumentError("a PROMPT is needed; see --help"));
  std::string prompt = absl::StrJoin(words, " ");
  if (prompt == "-") prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  v1::GenerateRequest request;
  generate.Fill(request);
  request.set_text(std::move(prompt));
  if (literal) request.set_parse_special(false);
  Client client(flags);
  return Finish(RunGenerate(client, request, generate.timeout(), flags.json ? PrintJson : PrintText), flags);
}

int ChatCommand(const std::vector<std::string>& args) {
  ServerFlags flags;
  GenerateFlags generate;
  std::string system;
  OptionSet set("millrace chat", "[options] [MESSAGE]   (without MESSAGE: a conversation on standard input)",
                "Talks to the model through its chat template.");
  flags.Declare(set);
  generate.Declare(set);
  set.AddString("system", &system, "TEXT", "system message");
  std::vector<std::string> words;
  const auto outcome = set.Parse(args, &words);
  if (!outcome.ok()) return ReportUsage("chat", outcome.status());
  if (*outcome == OptionSet::Outcome::kHelpShown) return kExitOk;
  if (const absl::Status tls = flags.Load(); !tls.ok()) return ReportUsage("chat", tls);
  v1::GenerateRequest request;
  generate.Fill(request);
  if (!system.empty()) AddMessage(request, "system", system);
  Client client(flags);
  if (words.empty()) return Converse(client, std::move(request), generate, flags);
  AddMessage(request, "user", absl::StrJoin(words, " "));
  return Finish(RunGenerate(client, request, generate.timeout(), flags.json ? PrintJson : PrintText), flags);
}

}  // namespace millrace::cli
