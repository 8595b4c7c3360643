#include "common/options.h"

#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;
using Outcome = OptionSet::Outcome;

// One option of each type, and files that are removed with the test.
class OptionsTest : public ::testing::Test {
 protected:
  OptionsTest() : set_("prog", "[options]", "Does things.") {
    set_.AddString("name", &name_, "NAME", "a name");
    set_.AddInt("count", &count_, -5, 100, "a count");
    set_.AddDouble("ratio", &ratio_, 0, 1, "a ratio");
    set_.AddBool("loud", &loud_, "be loud");
    set_.AddBool("calm", &calm_, "be calm");
    set_.AddBytes("kv-memory", &bytes_, "memory");
    set_.AddDuration("grace", &grace_, "a time");
    set_.AddIntList("layers", &layers_, 1, 50, "layers");
  }
  ~OptionsTest() override {
    for (const std::string& path : files_) unlink(path.c_str());
  }

  std::string File(const std::string& text) {
    std::string path = absl::StrCat(::testing::TempDir(), "options-XXXXXX");
    close(mkstemp(path.data()));
    std::ofstream(path) << text;
    files_.push_back(path);
    return path;
  }

  absl::Status Parse(const std::vector<std::string>& args) { return set_.Parse(args, nullptr).status(); }
  absl::Status ParseFile(const std::string& text) { return Parse({"--config", path_ = File(text)}); }

  void ExpectRefused(const std::vector<std::string>& args, const std::string& why) {
    const absl::Status status = Parse(args);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << ::testing::PrintToString(args);
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
    EXPECT_EQ(status.message().find('\n'), absl::string_view::npos) << status;
  }
  // `place` is ":line:column: ".
  void ExpectFileRefused(const std::string& text, const std::string& place, const std::string& why) {
    const absl::Status status = ParseFile(text);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), StartsWith(path_ + place)) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why)) << text;
  }

  OptionSet set_;
  std::string path_;
  std::string name_ = "nobody";
  int64_t count_ = 7;
  double ratio_ = 0.5;
  bool loud_ = false;
  bool calm_ = true;
  uint64_t bytes_ = 1024;
  absl::Duration grace_ = absl::Seconds(10);
  std::vector<int64_t> layers_ = {1, 2};
  std::vector<std::string> files_;
};

TEST_F(OptionsTest, KeepsTheDefaultsWhereNothingIsSaid) {
  ASSERT_TRUE(Parse({}).ok());
  EXPECT_EQ(name_, "nobody");
  EXPECT_EQ(count_, 7);
  EXPECT_THAT(layers_, ElementsAre(1, 2));
}

TEST_F(OptionsTest, ReadsEveryTypeFromTheCommandLine) {
  ASSERT_TRUE(Parse({"--name", "ada", "--count", "-5", "--ratio", "0.25", "--loud", "--calm=false",
                     "--kv-memory", "2GiB", "--grace", "500ms", "--layers", "3, 4,50"})
                  .ok());
  EXPECT_EQ(name_, "ada");
  EXPECT_EQ(count_, -5);
  EXPECT_EQ(ratio_, 0.25);
  EXPECT_TRUE(loud_);
  EXPECT_FALSE(calm_);
  EXPECT_EQ(bytes_, uint64_t{2} << 30);
  EXPECT_EQ(grace_, absl::Milliseconds(500));
  EXPECT_THAT(layers_, ElementsAre(3, 4, 50));
}

TEST_F(OptionsTest, ReadsEveryTypeFromAFile) {
  const absl::Status status = ParseFile(
      "# comment\nname: ada\ncount: 9\nratio: 1\nloud: yes\ncalm: off\nkv_memory: 512MiB\ngrace: 2m\n"
      "layers: [3, 4]\n");
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(name_, "ada");
  EXPECT_EQ(count_, 9);
  EXPECT_EQ(ratio_, 1);
  EXPECT_TRUE(loud_);
  EXPECT_FALSE(calm_);
  EXPECT_EQ(bytes_, uint64_t{512} << 20);
  EXPECT_EQ(grace_, absl::Minutes(2));
  EXPECT_THAT(layers_, ElementsAre(3, 4));
}

TEST_F(OptionsTest, LetsFlagsWinOverTheFileAndTheFileOverDefaults) {
  const std::string path = File("count: 20\nname: file\n");
  ASSERT_TRUE(Parse({"--count", "30", "--config", path}).ok());
  EXPECT_EQ(count_, 30);
  EXPECT_EQ(name_, "file");
  EXPECT_EQ(ratio_, 0.5);
}

TEST_F(OptionsTest, TakesTheLastOfRepeatedFlags) {
  ASSERT_TRUE(Parse({"--count", "1", "--count=2"}).ok());
  EXPECT_EQ(count_, 2);
}

TEST_F(OptionsTest, TakesAValueAfterAnEqualsSignAsItIs) {
  ASSERT_TRUE(Parse({"--name=a=b --count 3"}).ok());
  EXPECT_EQ(name_, "a=b --count 3");
  ASSERT_TRUE(Parse({"--name="}).ok());
  EXPECT_EQ(name_, "");
}

TEST_F(OptionsTest, RefusesWrongFlags) {
  ExpectRefused({"--nonsense", "1"}, "unknown flag --nonsense; see prog --help");
  ExpectRefused({"--count"}, "--count needs a value (N)");
  ExpectRefused({"--count", "101"}, "--count: '101' is not a whole number from -5 to 100");
  ExpectRefused({"--count", "-6"}, "--count: '-6'");
  ExpectRefused({"--count", "1.5"}, "--count: '1.5'");
  ExpectRefused({"--count", "99999999999999999999"}, "--count: '99999999999999999999'");
  ExpectRefused({"--count="}, "--count: ''");
  ExpectRefused({"--loud=maybe"}, "--loud: 'maybe' is not true or false");
  ExpectRefused({"--layers", "1,51"}, "--layers: '51'");
  ExpectRefused({"--layers", "1,,2"}, "--layers: ''");
  ExpectRefused({"-x"}, "unexpected argument '-x'");
  ExpectRefused({"stray"}, "unexpected argument 'stray'; see prog --help");
  ExpectRefused({"--", "--count"}, "unexpected argument '--count'");
  EXPECT_EQ(count_, 7);
  EXPECT_THAT(layers_, ElementsAre(1, 2));
}

TEST_F(OptionsTest, RefusesNumbersThatAreNone) {
  for (const char* text : {"nan", "NaN", "-nan", "inf", "-0.1", "1.01", "x", ""}) {
    ExpectRefused({"--ratio", text}, "is not a number from 0 to 1");
  }
  EXPECT_EQ(ratio_, 0.5);
  for (const char* text : {"nan", "inf", "-1", "-1s", "9000h", "5 apples", ""}) {
    ExpectRefused({"--grace", text}, absl::StrCat("--grace: '", text, "' is not "));
  }
  EXPECT_EQ(grace_, absl::Seconds(10));
}

TEST_F(OptionsTest, ReadsDurations) {
  for (const auto& [text, expected] :
       std::vector<std::pair<std::string, absl::Duration>>{{"5", absl::Seconds(5)},
                                                           {"0", absl::ZeroDuration()},
                                                           {"0.25", absl::Milliseconds(250)},
                                                           {"1h30m", absl::Minutes(90)},
                                                           {"100us", absl::Microseconds(100)}}) {
    ASSERT_TRUE(Parse({"--grace", text}).ok()) << text;
    EXPECT_EQ(grace_, expected) << text;
  }
}

TEST_F(OptionsTest, SaysWhereInTheFileAnUnknownKeyIs) {
  ExpectFileRefused("count: 1\n\n  \nnonsense: 2\n", ":4:1: ", "unknown key 'nonsense'; see prog --help");
  ExpectFileRefused("config: other.yaml\n", ":1:1: ", "unknown key 'config'");
  ExpectFileRefused("[a, b]: 1\n", ":1:1: ", "unknown key ''");
}

TEST_F(OptionsTest, SaysWhereInTheFileAWrongValueIs) {
  ExpectFileRefused("name: x\ncount:   1000\n", ":2:10: ", "count: '1000' is not a whole number");
  ExpectFileRefused("ratio: .nan\n", ":1:8: ", "ratio: '.nan'");
  ExpectFileRefused("ratio: nan\n", ":1:8: ", "ratio: 'nan'");
  ExpectFileRefused("layers: [1, [2]]\n", ":1:9: ", "expected a list of plain values");
  ExpectFileRefused("count: {a: 1}\n", ":1:8: ", "expected one value or a list");
  ExpectFileRefused("count: [1, 2]\n", ":1:8: ", "'1,2'");
}

TEST_F(OptionsTest, RefusesAWrongFileEvenWhereAFlagWins) {
  const std::string path = File("count: 1000\n");
  ExpectRefused({"--config", path, "--count", "1"}, path + ":1:8: count: '1000'");
}

TEST_F(OptionsTest, RefusesAKeyThatIsGivenTwice) {
  ExpectFileRefused("count: 1\nname: a\ncount: 1\n", ":3:1: ", "'count' is given twice");
  ExpectFileRefused("kv-memory: 1\nkv_memory: 1\n", ":2:1: ", "'kv_memory' is given twice");
}

TEST_F(OptionsTest, RefusesFilesThatAreNoList) {
  ExpectFileRefused("- count\n- name\n", ":1:1: ", "expected `option: value` lines");
  ExpectFileRefused("just words\n", ":1:1: ", "expected `option: value` lines");
  ExpectFileRefused("count: 1\nname: [a\n", ":3:1: ", "");
  ExpectRefused({"--config", "/nonexistent/file.yaml"}, "/nonexistent/file.yaml: cannot be read");
  ExpectRefused({"--config", "/"}, "/: cannot be read");
}

TEST_F(OptionsTest, TakesAnEmptyFileAsOneThatSaysNothing) {
  EXPECT_TRUE(ParseFile("").ok());
  EXPECT_TRUE(ParseFile("# only a comment\n").ok());
  EXPECT_EQ(count_, 7);
}

TEST_F(OptionsTest, CollectsPositionalArguments) {
  std::vector<std::string> positional;
  ASSERT_TRUE(set_.Parse({"one", "--count", "3", "-", "--", "--name", "two", "--"}, &positional).ok());
  EXPECT_THAT(positional, ElementsAre("one", "-", "--name", "two", "--"));
  EXPECT_EQ(count_, 3);
  EXPECT_EQ(name_, "nobody");
  positional.clear();
  ASSERT_TRUE(set_.Parse({"--count", "4", "--"}, &positional).ok());
  EXPECT_THAT(positional, IsEmpty());
}

TEST_F(OptionsTest, TakesABareDoubleDashWithoutPositionalArguments) {
  EXPECT_TRUE(Parse({"--"}).ok());
}

TEST_F(OptionsTest, DescribesEveryOptionWithItsDefault) {
  const std::string help = set_.HelpText();
  EXPECT_THAT(help, StartsWith("usage: prog [options]\n\nDoes things.\n\n"));
  EXPECT_THAT(help, HasSubstr("  --count N                   a count (default 7)\n"));
  EXPECT_THAT(help, HasSubstr("  --kv-memory BYTES           memory (default 1.0 KiB)\n"));
  EXPECT_THAT(help, HasSubstr("  --grace TIME                a time (default 10s)\n"));
  EXPECT_THAT(help, HasSubstr("  --layers N,N,...            layers (default 1,2)\n"));
  EXPECT_THAT(help, HasSubstr("  --loud                      be loud\n"));
  EXPECT_THAT(help, HasSubstr("  --config FILE "));
  EXPECT_THAT(help, HasSubstr("  --version "));
}

TEST_F(OptionsTest, BreaksLongHelpIntoLines) {
  bool flag = false;
  std::string words;
  for (int i = 0; i < 60; ++i) absl::StrAppend(&words, "word ");
  set_.AddBool("wordy", &flag, words);
  size_t begin = 0;
  const std::string help = set_.HelpText();
  for (size_t end; (end = help.find('\n', begin)) != std::string::npos; begin = end + 1) {
    EXPECT_LE(end - begin, 110u) << help.substr(begin, end - begin);
  }
}

TEST_F(OptionsTest, PrintsHelpInsteadOfRunning) {
  ::testing::internal::CaptureStdout();
  const absl::StatusOr<Outcome> outcome = set_.Parse({"--count", "3", "--help", "--nonsense"}, nullptr);
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), set_.HelpText());
  ASSERT_TRUE(outcome.ok());
  EXPECT_EQ(*outcome, Outcome::kHelpShown);
  EXPECT_EQ(count_, 7);
}

TEST_F(OptionsTest, PrintsTheVersionInsteadOfRunning) {
  ::testing::internal::CaptureStdout();
  const absl::StatusOr<Outcome> outcome = set_.Parse({"--version"}, nullptr);
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), absl::StrCat("prog ", kVersion, "\n"));
  ASSERT_TRUE(outcome.ok());
  EXPECT_EQ(*outcome, Outcome::kHelpShown);
}

TEST(ParseBytesTest, ReadsSizesWithAndWithoutUnits) {
  for (const auto& [text, expected] :
       std::vector<std::pair<std::string, uint64_t>>{{"0", 0},
                                                     {"1048576", 1048576},
                                                     {"1B", 1},
                                                     {"1kB", 1000},
                                                     {"1K", 1024},
                                                     {"1KiB", 1024},
                                                     {"500MB", 500000000},
                                                     {"512MiB", 536870912},
                                                     {"1.5GiB", 1610612736},
                                                     {"2 G", uint64_t{2} << 30},
                                                     {"1TB", 1000000000000},
                                                     {"1TiB", uint64_t{1} << 40}}) {
    const absl::StatusOr<uint64_t> bytes = ParseBytes(text);
    ASSERT_TRUE(bytes.ok()) << text;
    EXPECT_EQ(*bytes, expected) << text;
  }
}

TEST(ParseBytesTest, RefusesWhatIsNoSize) {
  for (const char* text : {"", "GiB", "-1", "nan", "inf", "1 apple", "1PiB", "99999999TiB", "0x", "1e400"}) {
    EXPECT_EQ(ParseBytes(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(FormatBytesTest, ChoosesTheUnit) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1024), "1.0 KiB");
  EXPECT_EQ(FormatBytes(536870912), "512.0 MiB");
  EXPECT_EQ(FormatBytes(uint64_t{5} << 50), "5120.0 TiB");
}

}  // namespace
}  // namespace millrace
