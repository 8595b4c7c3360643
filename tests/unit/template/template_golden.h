// Cases of make_template_golden.py: a template, a conversation, and what jinja2 made of them.
#pragma once

#include <string>
#include <vector>

#include "model/chat_template.h"

namespace millrace {

struct TemplateCase {
  std::string name;  // template/conversation
  std::string template_name;
  std::string source;
  std::vector<ChatTurn> turns;
  ChatTemplateOptions options;
  bool fails = false;    // jinja2 raised `expected`
  std::string expected;  // else this text
};

// Templates the JSON file only names are read from `folder`. Dies with a message on anything missing.
std::vector<TemplateCase> ReadTemplateCases(const std::string& json_path, const std::string& folder);

// "" if our answer is the expected one: the same text, or some error where there was one. Else what differs.
std::string CheckTemplateCase(const TemplateCase& test);

// "" if the literal ranges are sorted, disjoint and inside the text.
std::string CheckRanges(const RenderedChat& chat);

}  // namespace millrace
