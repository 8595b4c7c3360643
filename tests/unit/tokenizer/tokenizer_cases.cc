#include "tests/unit/tokenizer/tokenizer_cases.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>
#include <utility>

#include "absl/strings/escaping.h"
#include "model/gguf_file.h"

namespace millrace {

std::vector<TokenId> ParseIds(const std::string& line) {
  std::vector<TokenId> ids;
  std::istringstream in(line);
  for (TokenId id; in >> id;) ids.push_back(id);
  EXPECT_TRUE(in.eof()) << "not a list of ids: " << line;
  return ids;
}

std::vector<TokenizerCase> ReadTokenizerCases(const std::string& path) {
  std::vector<TokenizerCase> cases;
  std::ifstream in(path);
  EXPECT_TRUE(in.good()) << "cannot read " << path;
  for (std::string line; std::getline(in, line);) {
    const size_t tab = line.find('\t');
    if (tab == std::string::npos) {
      ADD_FAILURE() << path << ": no tab in line " << cases.size() + 1;
      return {};
    }
    cases.push_back({absl::HexStringToBytes(line.substr(0, tab)), ParseIds(line.substr(tab + 1))});
  }
  return cases;
}

std::unique_ptr<Tokenizer> OpenTokenizer(const std::string& path) {
  const auto file = GgufFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  if (!file.ok()) return nullptr;
  auto tokenizer = Tokenizer::FromGguf(**file);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::string RequireEnvironment(const char* name, const char* what) {
  const char* value = std::getenv(name);
  EXPECT_NE(value, nullptr) << "set " << name << " to " << what;
  return value == nullptr ? "" : value;
}

EncodeOptions PlainOptions(bool parse_special) {
  EncodeOptions options;
  options.add_bos = false;
  options.parse_special = parse_special;
  return options;
}

void ExpectCases(const Tokenizer& tokenizer, const std::vector<TokenizerCase>& cases, bool parse_special) {
  const auto missing = tokenizer.missing_bytes();
  for (const TokenizerCase& c : cases) {
    const std::vector<TokenId> ids = tokenizer.Encode(c.text, PlainOptions(parse_special));
    EXPECT_EQ(ids, c.ids) << "text: " << absl::CEscape(c.text);
    std::string kept = c.text;
    kept.erase(std::remove_if(kept.begin(), kept.end(),
                              [&](char byte) {
                                return std::count(missing.begin(), missing.end(),
                                                  static_cast<uint8_t>(byte)) > 0;
                              }),
               kept.end());
    EXPECT_EQ(tokenizer.Decode(ids, false), kept);
  }
}

}  // namespace millrace
