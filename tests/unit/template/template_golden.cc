#include "tests/unit/template/template_golden.h"

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace millrace {
namespace {

using nlohmann::json;

[[noreturn]] void Die(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(2);
}

std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in.is_open()) Die(absl::StrCat(path, ": cannot be read"));
  return std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
}

std::tm ParseTime(const std::string& iso) {
  std::tm time = {};
  if (strptime(iso.c_str(), "%Y-%m-%dT%H:%M:%S", &time) == nullptr) Die("no time: " + iso);
  return time;
}

std::map<std::string, std::vector<ChatTurn>> ReadConversations(const json& golden) {
  std::map<std::string, std::vector<ChatTurn>> conversations;
  for (const auto& [name, turns] : golden.at("conversations").items()) {
    std::vector<ChatTurn>& list = conversations[name];
    for (const json& turn : turns) list.push_back({turn.at("role"), turn.at("content")});
  }
  return conversations;
}

}  // namespace

std::vector<TemplateCase> ReadTemplateCases(const std::string& json_path, const std::string& folder) {
  json golden = json::parse(ReadAll(json_path));
  auto conversations = ReadConversations(golden);
  std::map<std::string, std::string> sources = golden.at("templates");
  std::vector<TemplateCase> cases;
  for (const json& row : golden.at("cases")) {
    TemplateCase test;
    test.template_name = row.at("template");
    std::string conversation = row.at("conversation");
    auto [source, missing] = sources.try_emplace(test.template_name);
    if (missing) source->second = ReadAll(absl::StrCat(folder, "/", test.template_name));
    test.source = source->second;
    test.turns = conversations.at(conversation);
    test.options.bos_text = golden.at("bos");
    test.options.eos_text = golden.at("eos");
    test.options.add_generation_prompt = row.at("add_generation_prompt");
    test.options.local_time = ParseTime(golden.at("local_time"));
    test.name = absl::StrCat(test.template_name, "/", conversation,
                             test.options.add_generation_prompt ? "" : "/no_prompt");
    test.fails = row.contains("error");
    test.expected = row.at(test.fails ? "error" : "text");
    cases.push_back(std::move(test));
  }
  return cases;
}

std::string CheckRanges(const RenderedChat& chat) {
  size_t last_end = 0;
  for (const TextRange& range : chat.literal_ranges) {
    bool ordered =
        range.begin < range.end && range.end <= chat.text.size() && (last_end == 0 || range.begin > last_end);
    if (!ordered) return absl::StrFormat("literal range %d-%d behind %d", range.begin, range.end, last_end);
    last_end = range.end;
  }
  return "";
}

std::string CheckTemplateCase(const TemplateCase& test) {
  auto parsed = ChatTemplate::Parse(test.source);
  if (!parsed.ok()) return test.fails ? "" : std::string(parsed.status().message());
  auto chat = (*parsed)->Render(test.turns, test.options);
  if (!chat.ok()) return test.fails ? "" : std::string(chat.status().message());
  if (test.fails) return absl::StrCat("gave \"", chat->text, "\", jinja2 raised ", test.expected);
  if (chat->text != test.expected)
    return absl::StrCat("gave\n", chat->text, "\njinja2 gave\n", test.expected);
  return CheckRanges(*chat);
}

}  // namespace millrace
