// Any bytes as a chat template and the turns it renders: up to the first NUL the template, then contents, one
// per NUL.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "common/check.h"
#include "model/chat_template.h"

namespace millrace {
namespace {

void CheckError(const absl::Status& status) {
  MILLRACE_CHECK(status.code() == absl::StatusCode::kInvalidArgument ||
                 status.code() == absl::StatusCode::kResourceExhausted);
  MILLRACE_CHECK(status.message().find("chat template") == 0);
  for (const char c : status.message()) MILLRACE_CHECK(static_cast<uint8_t>(c) >= ' ');
}

std::vector<ChatTurn> TurnsOf(const std::vector<absl::string_view>& parts) {
  std::vector<ChatTurn> turns = {{"system", "Be brief."}, {"user", " Hi\nthere "}};
  for (size_t i = 1; i < parts.size() && i < 20; ++i) {
    turns.push_back({i % 2 == 1 ? "assistant" : "user", std::string(parts[i])});
  }
  return turns;
}

void CheckRanges(const RenderedChat& chat) {
  MILLRACE_CHECK(chat.text.size() <= ChatTemplate::kMaxRenderedBytes);
  size_t free_from = 0;
  for (const TextRange& range : chat.literal_ranges) {
    MILLRACE_CHECK(free_from <= range.begin && range.begin < range.end && range.end <= chat.text.size());
    free_from = range.end + 1;
  }
}

}  // namespace
}  // namespace millrace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  const std::vector<absl::string_view> parts = absl::StrSplit(input, '\0');
  const auto parsed = millrace::ChatTemplate::Parse(parts[0]);
  if (!parsed.ok()) {
    millrace::CheckError(parsed.status());
    return 0;
  }
  millrace::ChatTemplateOptions options;
  options.bos_text = "<s>";
  options.eos_text = "</s>";
  options.local_time = std::tm{};
  const auto chat = (*parsed)->Render(millrace::TurnsOf(parts), options);
  if (chat.ok()) {
    millrace::CheckRanges(*chat);
  } else {
    millrace::CheckError(chat.status());
  }
  return 0;
}
