// Command-line flags and the YAML file that says the same: one table of options for both.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace millrace {

// The options of one program. Each has a name (`kv-memory`), a target that holds its default, and a help
// text. Values come from, in rising order of precedence: the target's default, the file named by --config,
// the command line. Thread: main, before other threads start.
class OptionSet {
 public:
  // `usage`: what follows the program's name, for instance "--model M.gguf [options]". `summary`: one
  // sentence.
  OptionSet(std::string program, std::string usage, std::string summary);

  void AddString(absl::string_view name, std::string* target, absl::string_view value_name,
                 absl::string_view help);
  // A default outside the range stands for "not said"; the help text then tells what that means.
  void AddInt(absl::string_view name, int64_t* target, int64_t min, int64_t max, absl::string_view help);
  void AddDouble(absl::string_view name, double* target, double min, double max, absl::string_view help);
  void AddBool(absl::string_view name, bool* target, absl::string_view help);
  // Bytes with an optional unit: 1048576, 512MiB, 2GiB, 500MB.
  void AddBytes(absl::string_view name, uint64_t* target, absl::string_view help);
  // Seconds: a number, or one with a unit (500ms, 2s, 1m).
  void AddDuration(absl::string_view name, absl::Duration* target, absl::string_view help);
  // Numbers separated by commas; a YAML sequence, too.
  void AddIntList(absl::string_view name, std::vector<int64_t>* target, int64_t min, int64_t max,
                  absl::string_view help);

  enum class Outcome { kRun, kHelpShown };
  // Reads argv (without the program name). --help and --version print to standard output and give kHelpShown.
  // Arguments that are not options go to `positional`; if that is null they are errors. INVALID_ARGUMENT: one
  // line saying which flag, or which file, line and column, is wrong, and how.
  absl::StatusOr<Outcome> Parse(const std::vector<std::string>& args, std::vector<std::string>* positional);

  std::string HelpText() const;

 private:
  struct Option {
    std::string name;
    std::string value_name;  // empty: a bool
    std::string help;
    std::string default_text;
    std::function<absl::Status(const std::string&)> set;
  };
  void Add(Option option);
  const Option* FindOption(absl::string_view name) const;
  absl::Status ApplyFile(const std::string& path);
  absl::StatusOr<std::pair<const Option*, std::string>> ReadFlag(const std::vector<std::string>& args,
                                                                 size_t* index);

  std::string program_;
  std::string usage_;
  std::string summary_;
  std::string config_path_;
  std::vector<Option> options_;
};

// "512MiB" -> 536870912. INVALID_ARGUMENT otherwise.
absl::StatusOr<uint64_t> ParseBytes(absl::string_view text);
// 536870912 -> "512.0 MiB".
std::string FormatBytes(uint64_t bytes);

inline constexpr char kVersion[] = "0.1.0";

// Exit codes of every program.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitDeviceLost = 3;  // a GPU, or what joins GPUs, failed or hung: a worker's watchdog
inline constexpr int kExitCoordinatorLost = 4;  // a worker's coordinator is gone, or silent for too long

}  // namespace millrace
