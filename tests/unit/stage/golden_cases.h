// tests/golden: what programs outside Millrace compute for the real model.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace millrace::testing {

// Null if the file of this name cannot be read.
nlohmann::json ReadGolden(const std::string& name);

// The cases of smollm2.json; empty if it cannot be read.
std::vector<nlohmann::json> ReadGoldenCases();

// The model's file, from the environment; null if it is not set.
const char* GoldenModelPath();

}  // namespace millrace::testing
