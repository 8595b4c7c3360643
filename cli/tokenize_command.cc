#include <cstdio>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_join.h"
#include "cli/client.h"
#include "model/utf8.h"

namespace millrace::cli {
namespace {

// A token may be part of a character: such bytes are shown as numbers.
std::string Readable(const std::string& token) {
  return ValidUtf8Prefix(token) == token.size() ? absl::Utf8SafeCEscape(token) : absl::CHexEscape(token);
}

}  // namespace

int TokenizeCommand(const std::vector<std::string>& args) {
  ServerFlags flags;
  bool literal = false;
  OptionSet set("millrace tokenize", "[options] TEXT   (TEXT - reads standard input)",
                "Shows the tokens of a text: id and bytes, one a line.");
  flags.Declare(set);
  set.AddBool("literal", &literal, "control tokens spelt out in the text are plain text");
  std::vector<std::string> words;
  const auto outcome = set.Parse(args, &words);
  if (!outcome.ok()) return ReportUsage("tokenize", outcome.status());
  if (*outcome == OptionSet::Outcome::kHelpShown) return kExitOk;
  if (const absl::Status tls = flags.Load(); !tls.ok()) return ReportUsage("tokenize", tls);
  if (words.empty())
    return ReportUsage("tokenize", absl::InvalidArgumentError("a TEXT is needed; see --help"));
  v1::TokenizeRequest request;
  request.set_text(absl::StrJoin(words, " "));
  if (request.text() == "-") request.mutable_text()->assign(std::istreambuf_iterator<char>(std::cin), {});
  if (literal) request.set_parse_special(false);
  Client client(flags);
  grpc::ClientContext context;
  v1::TokenizeResponse response;
  const grpc::Status status = client.inference->Tokenize(&context, request, &response);
  if (!status.ok()) return ReportStatus(status, flags);
  if (flags.json) {
    std::puts(ToJson(response).c_str());
    return kExitOk;
  }
  for (int i = 0; i < response.token_ids_size(); ++i) {
    std::printf("%6u  %s\n", response.token_ids(i), Readable(response.tokens(i)).c_str());
  }
  return kExitOk;
}

}  // namespace millrace::cli
