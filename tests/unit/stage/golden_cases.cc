#include "tests/unit/stage/golden_cases.h"

#include <cstdlib>
#include <fstream>

namespace millrace::testing {

nlohmann::json ReadGolden(const std::string& name) {
  std::ifstream file("tests/golden/" + name);
  const nlohmann::json golden = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  return golden.is_object() ? golden : nlohmann::json();
}

std::vector<nlohmann::json> ReadGoldenCases() {
  const nlohmann::json golden = ReadGolden("smollm2.json");
  if (!golden.contains("cases")) return {};
  return golden["cases"].get<std::vector<nlohmann::json>>();
}

const char* GoldenModelPath() {
  return std::getenv("MILLRACE_TEST_MODEL");
}

}  // namespace millrace::testing
