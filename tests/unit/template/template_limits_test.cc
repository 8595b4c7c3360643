// Templates that would eat time, memory or stack end in an error, soon.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/chat_template.h"

namespace millrace {
namespace {

using testing::HasSubstr;

std::string Repeat(const std::string& text, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += text;
  return all;
}

absl::Status ParseStatus(const std::string& source) {
  return ChatTemplate::Parse(source).status();
}

absl::Status RenderStatus(const std::string& source, const std::string& content = "x") {
  auto parsed = ChatTemplate::Parse(source);
  if (!parsed.ok()) return absl::InternalError(std::string(parsed.status().message()));
  return (*parsed)->Render({{"user", content}}, {}).status();
}

TEST(TemplateLimitTest, RefusesDeepNestingAtParsing) {
  const std::string sources[] = {
      absl::StrCat("{{ ", Repeat("(", 100'000), "1", Repeat(")", 100'000), " }}"),
      absl::StrCat("{{ ", Repeat("[", 100'000), Repeat("]", 100'000), " }}"),
      absl::StrCat("{{ ", Repeat("{1:", 60'000), "1", Repeat("}", 60'000), " }}"),
      absl::StrCat("{{ ", Repeat("not ", 60'000), "1 }}"),
      absl::StrCat("{{ ", Repeat("-", 100'000), "1 }}"),
      absl::StrCat("{{ ", Repeat("f(", 80'000), Repeat(")", 80'000), " }}"),
      absl::StrCat("{{ x", Repeat("[x", 80'000), Repeat("]", 80'000), " }}"),
      absl::StrCat("{{ 1", Repeat(" + 1", 50'000), " }}"),
      absl::StrCat("{{ 1", Repeat(" ** 1", 50'000), " }}"),
      absl::StrCat("{{ 1", Repeat(" or 1", 50'000), " }}"),
      absl::StrCat("{{ x", Repeat(".x", 100'000), " }}"),
      absl::StrCat("{{ x", Repeat("[1:]", 50'000), " }}"),
      absl::StrCat("{{ x", Repeat("()", 100'000), " }}"),
      absl::StrCat("{{ x", Repeat("|d", 100'000), " }}"),
      absl::StrCat("{{ 1", Repeat(" if 1", 50'000), " }}"),
      absl::StrCat("{{ 1", Repeat(" if 1 else 1", 20'000), " }}"),
      Repeat("{% if 1 %}", 20'000),
      Repeat("{%for x in y%}", 18'000),
      Repeat("{%macro f()%}", 18'000),
  };
  for (const std::string& source : sources) {
    absl::Status status = ParseStatus(source);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << source.substr(0, 40);
    EXPECT_THAT(std::string(status.message()), HasSubstr(" deep")) << source.substr(0, 40);
  }
}

TEST(TemplateLimitTest, AcceptsTheNestingOfRealTemplates) {
  EXPECT_TRUE(RenderStatus(absl::StrCat("{{ ", Repeat("(", 50), "1", Repeat(")", 50), " }}")).ok());
  EXPECT_TRUE(RenderStatus(absl::StrCat(Repeat("{% if 1 %}", 50), "x", Repeat("{% endif %}", 50))).ok());
  EXPECT_TRUE(RenderStatus(absl::StrCat("{{ 'a'", Repeat(" + 'b'", 150), " }}")).ok());
  EXPECT_TRUE(RenderStatus(absl::StrCat("{% if 0 %}", Repeat("{% elif 0 %}", 10'000), "{% endif %}")).ok());
  EXPECT_TRUE(RenderStatus(absl::StrCat("{{ 'a'", Repeat(" ~ 'b'", 10'000), " }}")).ok());
}

TEST(TemplateLimitTest, EndsLoopsAndRecursionThatGoOnTooLong) {
  const std::string sources[] = {
      "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
      "{% for i in range(100000) %}{% set x = 1 + 1 + 1 + 1 + 1 %}{% endfor %}",
      "{% set l = [0] %}{% for i in range(60) %}{% set l = l + l %}{% endfor %}" +
          Repeat("{% set l = l + l %}", 40),
      "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
      "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
      "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
      "{% set l = [1] %}{% for i in l %}{% set _ = l.append(1) %}{% for j in range(1000) %}{% for k in "
      "range(1000) %}"
      "{% endfor %}{% endfor %}{% endfor %}",
      "{{ [0] * 9223372036854775807 }}",
      "{{ [0, 1] * 9223372036854775807 }}",
      "{{ 'x' * 9223372036854775807 }}",
      "{% set l = range(3000)|list %}{{ l|unique|list|length }}",
      "{% set l = range(100000)|list %}{% for i in range(100) %}{{ l|sort|length }}{% endfor %}",
  };
  for (const std::string& source : sources) {
    EXPECT_EQ(RenderStatus(source).code(), absl::StatusCode::kResourceExhausted) << source.substr(0, 80);
  }
}

TEST(TemplateLimitTest, EndsStringsThatGrowTooLarge) {
  const std::string doubling = "{% set ns = namespace(t='x' * 1000) %}{% for i in range(60) %}{% set ns.t = ";
  const std::string sources[] = {
      doubling + "ns.t + ns.t %}{% endfor %}",
      doubling + "ns.t ~ ns.t %}{% endfor %}",
      doubling + "ns.t * 2 %}{% endfor %}",
      doubling + "ns.t|replace('x', 'xx') %}{% endfor %}",
      doubling + "[ns.t, ns.t]|join %}{% endfor %}",
      doubling + "'%s%s' % (ns.t, ns.t) %}{% endfor %}",
      doubling + "'{}{}'.format(ns.t, ns.t) %}{% endfor %}",
      doubling + "ns.t.join([ns.t, ns.t]) %}{% endfor %}",
      doubling + "ns.t|tojson|tojson|tojson %}{% endfor %}",
      "{% set a = 'x' * 4000000 %}{{ a|replace('x', a) }}",
      "{% set a = 'x' * 4000000 %}{{ a|replace('', a) }}",
      "{% set a = ('x' * 4000000)|list %}",
      "{% set a = ('x,' * 4000000).split(',') %}",
      "{% set a = ('x ' * 4000000).split() %}",
      "{% set a = ('\n' * 8000000)|indent %}",
      "{% set a = 'x' * 8000000 %}{% set ns = namespace() %}{% set l = [] %}{% for i in range(100) %}"
      "{% set _ = l.append(a ~ i) %}{% endfor %}",
      "{% set a = 'x' * 8000000 %}{% for i in range(1000) %}{% set b = a|upper %}{% endfor %}",
      "{% set a = 'x' * 8000000 %}{% for i in range(1000) %}{% set b = a ~ 'y' %}{% endfor %}",
      "{% set a = 'x' * 8000000 %}{% for i in range(1000) %}{% set b = 'y' in a %}{% endfor %}",
      "{% set a = 'x' * 8000000 %}{% for i in range(100000) %}{% set b = a|length %}{% endfor %}",
      "{% set a = 'x' * 8000000 %}{% for i in range(100000) %}{% set b = a[1:2] %}{% endfor %}",
      "{% set a = 'x' * 8000000 %}{% for i in range(100000) %}{% set b = a.startswith(a) %}{% endfor %}",
      "{% set a = ' ' * 8000000 %}{% for i in range(100000) %}{% set b = a.strip() %}{% endfor %}",
      "{% set a = ' ' * 8000000 %}{% for i in range(100000) %}{% set b = a|int %}{% endfor %}",
      "{% set a = 'x' * 8000000 %}{% for i in range(100000) %}{% set b = 'x'.strip(a) %}{% endfor %}",
      "{% set a = 'x' * 8000000 %}{% for i in range(100000) %}{% set b = a.count('x') %}{% endfor %}",
      "{% set a = 'x' * 8000000 %}{% for i in range(100000) %}{% set b = a is lower %}{% endfor %}",
      "{% set a = 'x' * 8000000 %}{% set b = 'x' * 8000000 %}{% for i in range(100000) %}{% set c = a == b "
      "%}{% endfor %}",
      "{% set a = 'x' * 8000000 %}{% set n = namespace() %}{% for i in range(100000) %}{% set c = n[a] %}{% "
      "endfor %}",
      "{% set a = 'x' * 8000000 %}{% for i in range(3) %}{{ a }}{% endfor %}",
      "{% set a = 'x' * 9000000 %}{{ a }}",
      "{{ 'a'|indent(9223372036854775807, true) }}",
  };
  for (const std::string& source : sources) {
    EXPECT_EQ(RenderStatus(source).code(), absl::StatusCode::kResourceExhausted) << source.substr(0, 120);
  }
}

TEST(TemplateLimitTest, SaysWhichLimitWasHit) {
  const std::string large = "{% set a = 'x' * 8000000 %}{% set l = [] %}{% for i in range(100) %}";
  const std::pair<std::string, std::string> rows[] = {
      {"{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
       "over 1000000 steps"},
      {large + "{% set b = a ~ 'y' %}{% endfor %}", "over 268435456 bytes of text worked on"},
      {large + "{% set _ = l.append(a + 'y') %}{% endfor %}", "over 134217728 bytes of memory"},
      {"{{ 'xx' * 10000000 }}", "a text over 16777216 bytes"},
      {"{% set a = 'x' * 9000000 %}{{ a }}", "9000000 bytes of output, limit 8388608"},
      {"{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "nested more than 250 levels deep"},
  };
  for (const auto& [source, says] : rows) {
    const absl::Status status = RenderStatus(source);
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << source;
    EXPECT_THAT(std::string(status.message()), HasSubstr(says)) << source;
  }
}

TEST(TemplateLimitTest, SurvivesListsThatHoldThemselves) {
  const std::string loop = "{% set l = [1] %}{% set _ = l.append(l) %}";
  EXPECT_EQ(RenderStatus(loop + "{{ l }}").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RenderStatus(loop + "{{ l|tojson }}").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RenderStatus(loop + "{% set m = [1] %}{% set _ = m.append(m) %}{{ l == m }}").code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(RenderStatus(loop + "{{ l|length }}{{ l == l }}").ok());
  EXPECT_TRUE(
      RenderStatus("{% set ns = namespace() %}{% set ns.self = ns %}{{ ns.self.self is defined }}").ok());
}

TEST(TemplateLimitTest, RefusesTurnsPastTheOutputLimit) {
  const std::string source = "{% for m in messages %}{{ m.content }}{% endfor %}";
  EXPECT_TRUE(RenderStatus(source, std::string(ChatTemplate::kMaxRenderedBytes, 'x')).ok());
  EXPECT_EQ(RenderStatus(source, std::string(ChatTemplate::kMaxRenderedBytes + 1, 'x')).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RenderStatus(source, std::string(20 << 20, 'x')).code(), absl::StatusCode::kResourceExhausted);
}

TEST(TemplateLimitTest, RendersALongChat) {
  auto parsed = ChatTemplate::Parse(
      "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']|trim + "
      "'<|im_end|>\n'}}"
      "{% endfor %}");
  ASSERT_TRUE(parsed.ok());
  auto chat = (*parsed)->Render(std::vector<ChatTurn>(10'000, {"user", "How do you do?"}), {});
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(chat->literal_ranges.size(), 20'000u);
}

}  // namespace
}  // namespace millrace
