// Renders the cases of a JSON file made by make_template_golden.py --folder and prints, per template, how
// many of them are as jinja2 renders them; exit status 1 if one differs that must not.
//
//   template_oracle_test CASES.json FOLDER [TEMPLATE...]    TEMPLATE: file names that must agree (default:
//   all)
#include <cstdio>
#include <map>
#include <set>
#include <string>

#include "tests/unit/template/template_golden.h"

namespace millrace {
namespace {

struct Score {
  int passed = 0;
  int failed = 0;
  std::string first_difference;
};

int Run(const std::string& json, const std::string& folder, const std::set<std::string>& required) {
  std::map<std::string, Score> scores;
  for (const TemplateCase& test : ReadTemplateCases(json, folder)) {
    Score& score = scores[test.template_name];
    std::string difference = CheckTemplateCase(test);
    ++(difference.empty() ? score.passed : score.failed);
    if (!difference.empty() && score.first_difference.empty())
      score.first_difference = test.name + ": " + difference;
  }
  int wrong = 0;
  int exact = 0;
  for (const auto& [name, score] : scores) {
    bool needed = required.empty() || required.count(name) > 0;
    std::printf("%-8s %3d of %3d  %s\n",
                score.failed == 0 ? "equal"
                : needed          ? "WRONG"
                                  : "differs",
                score.passed, score.passed + score.failed, name.c_str());
    if (score.failed > 0) std::printf("    %.600s\n", score.first_difference.c_str());
    wrong += needed && score.failed > 0;
    exact += score.failed == 0;
  }
  for (const std::string& name : required) wrong += scores.count(name) == 0;
  std::printf("%d of %zu templates equal to jinja2, %d wrong or missing\n", exact, scores.size(), wrong);
  return wrong == 0 && exact > 0 ? 0 : 1;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s CASES.json FOLDER [TEMPLATE...]\n", argv[0]);
    return 2;
  }
  return millrace::Run(argv[1], argv[2], std::set<std::string>(argv + 3, argv + argc));
}
