// What the messages of broken templates say, and that they name the right line.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/chat_template.h"

namespace millrace {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

const std::vector<ChatTurn>& Turns() {
  static const auto* turns = new std::vector<ChatTurn>{{"user", "Hi"}, {"assistant", "Hello"}};
  return *turns;
}

absl::Status RenderError(const std::string& source) {
  auto parsed = ChatTemplate::Parse(source);
  if (!parsed.ok()) return absl::InternalError(absl::StrCat("does not parse: ", parsed.status().message()));
  return (*parsed)->Render(Turns(), {}).status();
}

struct Row {
  std::string source;
  int line;
  std::string says;
};

TEST(TemplateParseErrorTest, NamesTheLineAndTheCause) {
  const Row rows[] = {
      {"a\n{{ 1", 2, "expected end of print statement, got the end of the template"},
      {"a\nb\n{% if x %}", 3, "ends before elif or else or endif"},
      {"{% for m in messages %}\n\n{{ m. }}\n{% endfor %}", 3, "expected a name or number"},
      {"\n{% nope %}", 2, "unknown or unsupported tag 'nope'"},
      {"\n\n{{ 'x }}", 3, "without its closing quote"},
      {"{#\n\n", 1, "missing end of comment"},
      {"\n{% raw %}\n", 2, "missing end of raw"},
      {"{{ (1] }}", 1, "unexpected ']', expected ')'"},
      {"\n{{ ) }}", 2, "unexpected ')'"},
      {"{{\n\n$ }}", 3, "unexpected character '$'"},
      {"\n{{ 1|nope }}", 2, "no filter named 'nope'"},
      {"\n{{ 1 is nope }}", 2, "no test named 'nope'"},
      {"{{ f(*x) }}", 1, "* and ** arguments are not supported"},
      {"{% for x in y recursive %}{% endfor %}", 1, "recursive loops are not supported"},
      {"\n{% extends 'x' %}", 2, "unknown or unsupported tag 'extends'"},
      {"\n{% include 'x' %}", 2, "'include'"},
      {"\n{% import 'x' as y %}", 2, "'import'"},
      {"\n{% break %}", 2, "outside of a loop"},
      {"{% for x in y %}{% macro f() %}{% continue %}{% endmacro %}{% endfor %}", 1, "outside of a loop"},
      {"{{ 99999999999999999999 }}", 1, "exceeds 64 bits"},
      {"{{ '\\ud800' }}", 1, "is no Unicode character"},
      {"{{ '\\N{DASH}' }}", 1, "by character name"},
      {"{% macro f(a=1, b) %}{% endmacro %}", 1, "without default behind one with default"},
      {"{% set 1 = 2 %}", 1, "cannot be assigned to"},
      {"{% call f %}{% endcall %}", 1, "expected a call"},
      {"{{ 0x }}", 1, "a number without digits"},
      {"{{ a[1, 2] }}", 1, "subscripts of several parts"},
  };
  for (const Row& row : rows) {
    auto parsed = ChatTemplate::Parse(row.source);
    ASSERT_FALSE(parsed.ok()) << row.source;
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(parsed.status().message()),
                AllOf(StartsWith(absl::StrCat("chat template line ", row.line, ": ")), HasSubstr(row.says)))
        << row.source;
  }
}

TEST(TemplateRenderErrorTest, NamesTheLineAndTheCause) {
  const Row rows[] = {
      {"\n\n{{ raise_exception('Roles must alternate') }}", 3, "Roles must alternate"},
      {"\n{{ x.y }}", 2, "'x' is undefined"},
      {"{{ messages[0].tool.name }}", 1, "'dict object' has no attribute 'tool'"},
      {"{{ messages[0]['tool']['name'] }}", 1, "'dict object' has no attribute 'tool'"},
      {"{{ 'a' +\n messages[0].nope }}", 1, "has no attribute 'nope'"},
      {"\n{{ nope() }}", 2, "'nope' is undefined"},
      {"\n{{ 1 / 0 }}", 2, "division by zero"},
      {"{{ 1 // 0 }}", 1, "division by zero"},
      {"{{ 1 % 0.0 }}", 1, "division by zero"},
      {"{{ 9223372036854775807 + 1 }}", 1, "exceeds 64 bits"},
      {"{{ -9223372036854775807 - 2 }}", 1, "exceeds 64 bits"},
      {"{{ 9223372036854775807 * 2 }}", 1, "exceeds 64 bits"},
      {"{{ (-9223372036854775807 - 1) // -1 }}", 1, "exceeds 64 bits"},
      {"{{ -(-9223372036854775807 - 1) }}", 1, "exceeds 64 bits"},
      {"{{ (-9223372036854775807 - 1)|abs }}", 1, "exceeds 64 bits"},
      {"{{ 3 ** 99 }}", 1, "exceeds 64 bits"},
      {"{{ 10.0 ** 999 }}", 1, "too large"},
      {"{{ 1 + 'a' }}", 1, "cannot add int and str"},
      {"{{ 'a' - 1 }}", 1, "expected an operand of -, got str"},
      {"{{ 1 < 'a' }}", 1, "cannot order int and str"},
      {"{% for i in 5 %}{% endfor %}", 1, "got int"},
      {"{% set a, b = [1] %}", 1, "cannot unpack 1 values into 2"},
      {"{% set q = 1 %}\n{% set q.x = 2 %}", 2, "'q' is no namespace"},
      {"{{ 'a'|replace('b') }}", 1, "replace: argument 'new' is missing"},
      {"{{ 'a'|upper(1) }}", 1, "upper: 1 arguments, takes at most 0"},
      {"{{ 'a'|trim(nope=1) }}", 1, "trim: no argument 'nope'"},
      {"{{ 'a'|replace('b', 'c', old='d') }}", 1, "given twice"},
      {"{% macro f(a) %}{% endmacro %}\n{{ f(1, 2) }}", 2, "macro f: 2 arguments, takes at most 1"},
      {"{% macro f(a) %}{% endmacro %}{{ f(b=2) }}", 1, "macro f: no parameter 'b'"},
      {"{% macro f(a) %}{% endmacro %}{{ f(1, a=2) }}", 1, "given twice"},
      {"{% macro f() %}\n{{ x.y }}{% endmacro %}\n\n{{ f() }}", 2, "'x' is undefined"},
      {"{{ range(200000) }}", 1, "range: 200000 elements, limit 100000"},
      {"{{ range(-9223372036854775807, 9223372036854775807) }}", 1, "limit 100000"},
      {"{{ [1][::0] }}", 1, "the step of a slice is zero"},
      {"{{ range }}", 1, "got function"},
      {"{{ x|tojson }}", 1, "'x' is undefined"},
      {"{{ {[1]: 2} }}", 1, "a list cannot be a dictionary key"},
      {"{% if true %}\n{{ 1|nope }}{% endif %}", 2, "no filter named 'nope'"},
      {"{{ '%q' % 1 }}", 1, "the format %q is not supported"},
      {"{{ '%99999d' % 1 }}", 1, "a format width over"},
      {"{{ 'a'.split('') }}", 1, "empty separator"},
  };
  for (const Row& row : rows) {
    absl::Status status = RenderError(row.source);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << row.source << ": " << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(StartsWith(absl::StrCat("chat template line ", row.line, ": ")), HasSubstr(row.says)))
        << row.source;
  }
}

TEST(TemplateRenderErrorTest, IsOneLineWhateverAnExceptionSays) {
  absl::Status status = RenderError("{{ raise_exception('a\\nb\\x00c' ~ 'x' * 10000) }}");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(StartsWith("chat template line 1: a b cxxx"), Not(HasSubstr("\n"))));
  EXPECT_LT(status.message().size(), 600u);
}

TEST(TemplateParseErrorTest, RefusesMoreSourceThanItsLimit) {
  EXPECT_TRUE(ChatTemplate::Parse(std::string(256 << 10, 'x')).ok());
  auto parsed = ChatTemplate::Parse(std::string((256 << 10) + 1, 'x'));
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("262145 bytes of source, limit 262144"));
}

TEST(TemplateTest, ListsCanGrowThoughTheSandboxOfJinja2ForbidsIt) {
  auto parsed = ChatTemplate::Parse(
      "{% set l = [] %}{% for m in messages %}{% set _ = l.append(m.role) %}{% endfor %}{{ l }}");
  ASSERT_TRUE(parsed.ok());
  auto chat = (*parsed)->Render(Turns(), {});
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(chat->text, "['user', 'assistant']");
}

TEST(TemplateTest, IsRenderedTheSameFromSeveralConversations) {
  auto parsed = ChatTemplate::Parse(
      "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}");
  ASSERT_TRUE(parsed.ok());
  for (size_t count : {3u, 0u, 1u, 3u}) {
    auto chat = (*parsed)->Render(std::vector<ChatTurn>(count, {"user", "x"}), {});
    ASSERT_TRUE(chat.ok());
    EXPECT_EQ(chat->text, absl::StrCat(count));
  }
}

}  // namespace
}  // namespace millrace
