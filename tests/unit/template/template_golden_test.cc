// Every construct and SmolLM2's template against jinja2.
#include "tests/unit/template/template_golden.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace millrace {
namespace {

constexpr char kGolden[] = "tests/golden/templates.json";

// The construct a case belongs to: the part of the template's name before "/".
std::string GroupOf(const TemplateCase& test) {
  return test.template_name.substr(0, test.template_name.find('/'));
}

class TemplateGoldenTest : public testing::TestWithParam<std::string> {};

TEST_P(TemplateGoldenTest, RendersAsJinja2Does) {
  size_t checked = 0;
  for (const TemplateCase& test : ReadTemplateCases(kGolden, "")) {
    if (GroupOf(test) != GetParam()) continue;
    EXPECT_EQ(CheckTemplateCase(test), "") << test.name << ": " << test.source;
    ++checked;
  }
  EXPECT_GT(checked, 0u);
}

INSTANTIATE_TEST_SUITE_P(Construct, TemplateGoldenTest,
                         testing::Values("text", "whitespace", "literals", "arithmetic", "comparison",
                                         "logic", "access", "undefined", "tests", "filters.text",
                                         "filters.sequence", "filters.value", "tojson", "methods",
                                         "functions", "set", "if", "for", "macro", "blocks", "errors",
                                         "chats", "smollm2"),
                         [](const testing::TestParamInfo<std::string>& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '.', '_');
                           return name;
                         });

TEST(TemplateGoldenFileTest, HasNoGroupThatNoTestRuns) {
  std::vector<std::string> tested;
  auto* suite = testing::UnitTest::GetInstance()->current_test_suite();
  ASSERT_NE(suite, nullptr);
  const testing::UnitTest& unit = *testing::UnitTest::GetInstance();
  for (int i = 0; i < unit.total_test_suite_count(); ++i) {
    const testing::TestSuite& s = *unit.GetTestSuite(i);
    for (int j = 0; j < s.total_test_count(); ++j) {
      if (s.GetTestInfo(j)->value_param() != nullptr) tested.push_back(s.GetTestInfo(j)->value_param());
    }
  }
  for (const TemplateCase& test : ReadTemplateCases(kGolden, "")) {
    EXPECT_THAT(tested, testing::Contains(absl::StrCat("\"", GroupOf(test), "\"")));
  }
}

}  // namespace
}  // namespace millrace
