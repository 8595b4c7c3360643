#include "common/options.h"

#include <sys/stat.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr size_t kHelpColumn = 30;
constexpr size_t kHelpWidth = 110;

absl::Status ParseIntInto(absl::string_view text, int64_t min, int64_t max, int64_t* out) {
  int64_t value = 0;
  if (!absl::SimpleAtoi(text, &value) || value < min || value > max) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is not a whole number from ", min, " to ", max));
  }
  *out = value;
  return absl::OkStatus();
}

absl::StatusOr<absl::Duration> ParseSeconds(const std::string& text) {
  double seconds = 0;
  absl::Duration duration;
  if (absl::SimpleAtod(text, &seconds) && std::isfinite(seconds)) {
    duration = absl::Seconds(seconds);
  } else if (!absl::ParseDuration(text, &duration)) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' is not a time such as 5, 500ms or 2m"));
  }
  if (duration < absl::ZeroDuration() || duration > absl::Hours(24 * 365)) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' is not between 0 and one year"));
  }
  return duration;
}

// Breaks `text` at spaces so that it fits beside the flags.
std::string Wrap(absl::string_view text, size_t indent) {
  std::string out;
  size_t column = indent;
  for (absl::string_view word : absl::StrSplit(text, ' ')) {
    if (column > indent && column + 1 + word.size() > kHelpWidth) {
      absl::StrAppend(&out, "\n", std::string(indent, ' '));
      column = indent;
    } else if (column > indent) {
      out.push_back(' ');
      ++column;
    }
    absl::StrAppend(&out, word);
    column += word.size();
  }
  return out;
}

// What a YAML value reads as on the command line: scalars as they are, sequences joined by commas.
absl::StatusOr<std::string> NodeText(const YAML::Node& node) {
  if (node.IsScalar()) return node.Scalar();
  if (!node.IsSequence()) return absl::InvalidArgumentError("expected one value or a list");
  std::vector<std::string> parts;
  for (const YAML::Node& item : node) {
    if (!item.IsScalar()) return absl::InvalidArgumentError("expected a list of plain values");
    parts.push_back(item.Scalar());
  }
  return absl::StrJoin(parts, ",");
}

std::string Place(const std::string& path, const YAML::Mark& mark) {
  return absl::StrCat(path, ":", mark.line + 1, ":", mark.column + 1, ": ");
}

}  // namespace

absl::StatusOr<uint64_t> ParseBytes(absl::string_view text) {
  static constexpr std::pair<const char*, double> kUnits[] = {
      {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0},
      {"kB", 1e3},     {"MB", 1e6},        {"GB", 1e9},           {"TB", 1e12},
      {"K", 1024.0},   {"M", 1048576.0},   {"G", 1073741824.0},   {"B", 1.0}};
  absl::string_view number = text;
  double unit = 1;
  for (const auto& [suffix, factor] : kUnits) {
    if (absl::EndsWith(number, suffix)) {
      number.remove_suffix(absl::string_view(suffix).size());
      unit = factor;
      break;
    }
  }
  double value = 0;
  if (!absl::SimpleAtod(absl::StripAsciiWhitespace(number), &value) || !std::isfinite(value) || value < 0 ||
      value * unit >= 9.0e18) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is not a size such as 1048576, 512MiB or 2GiB"));
  }
  return static_cast<uint64_t>(value * unit);
}

std::string FormatBytes(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1024 && unit < 4) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrCat(bytes, " B") : absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

OptionSet::OptionSet(std::string program, std::string usage, std::string summary)
    : program_(std::move(program)), usage_(std::move(usage)), summary_(std::move(summary)) {
  AddString("config", &config_path_, "FILE",
            "YAML file with any of these options, without the dashes; flags win over it");
}

void OptionSet::Add(Option option) {
  options_.push_back(std::move(option));
}

void OptionSet::AddString(absl::string_view name, std::string* target, absl::string_view value_name,
                          absl::string_view help) {
  Add({std::string(name), std::string(value_name), std::string(help), *target,
       [target](const std::string& text) {
         *target = text;
         return absl::OkStatus();
       }});
}

void OptionSet::AddInt(absl::string_view name, int64_t* target, int64_t min, int64_t max,
                       absl::string_view help) {
  const bool is_value = *target >= min && *target <= max;
  Add({std::string(name), "N", std::string(help), is_value ? absl::StrCat(*target) : "",
       [=](const std::string& text) { return ParseIntInto(text, min, max, target); }});
}

void OptionSet::AddDouble(absl::string_view name, double* target, double min, double max,
                          absl::string_view help) {
  Add({std::string(name), "X", std::string(help), absl::StrCat(*target), [=](const std::string& text) {
         double value = 0;
         // Written so that NaN is refused.
         if (!absl::SimpleAtod(text, &value) || !(value >= min && value <= max)) {
           return absl::InvalidArgumentError(
               absl::StrCat("'", text, "' is not a number from ", min, " to ", max));
         }
         *target = value;
         return absl::OkStatus();
       }});
}

void OptionSet::AddBool(absl::string_view name, bool* target, absl::string_view help) {
  Add({std::string(name), "", std::string(help), *target ? "true" : "", [target](const std::string& text) {
         if (text == "true" || text == "yes" || text == "on") {
           *target = true;
         } else if (text == "false" || text == "no" || text == "off") {
           *target = false;
         } else {
           return absl::InvalidArgumentError(absl::StrCat("'", text, "' is not true or false"));
         }
         return absl::OkStatus();
       }});
}

void OptionSet::AddBytes(absl::string_view name, uint64_t* target, absl::string_view help) {
  Add({std::string(name), "BYTES", std::string(help), *target == 0 ? "" : FormatBytes(*target),
       [target](const std::string& text) -> absl::Status {
         ASSIGN_OR_RETURN(*target, ParseBytes(text));
         return absl::OkStatus();
       }});
}

void OptionSet::AddDuration(absl::string_view name, absl::Duration* target, absl::string_view help) {
  Add({std::string(name), "TIME", std::string(help), absl::FormatDuration(*target),
       [target](const std::string& text) -> absl::Status {
         ASSIGN_OR_RETURN(*target, ParseSeconds(text));
         return absl::OkStatus();
       }});
}

void OptionSet::AddIntList(absl::string_view name, std::vector<int64_t>* target, int64_t min, int64_t max,
                           absl::string_view help) {
  Add({std::string(name), "N,N,...", std::string(help), absl::StrJoin(*target, ","),
       [=](const std::string& text) -> absl::Status {
         std::vector<int64_t> values;
         for (absl::string_view part : absl::StrSplit(text, ',')) {
           values.emplace_back();
           RETURN_IF_ERROR(ParseIntInto(absl::StripAsciiWhitespace(part), min, max, &values.back()));
         }
         *target = std::move(values);
         return absl::OkStatus();
       }});
}

const OptionSet::Option* OptionSet::FindOption(absl::string_view name) const {
  const std::string dashed = absl::StrReplaceAll(name, {{"_", "-"}});
  for (const Option& option : options_) {
    if (option.name == dashed) return &option;
  }
  return nullptr;
}

absl::StatusOr<std::pair<const OptionSet::Option*, std::string>> OptionSet::ReadFlag(
    const std::vector<std::string>& args, size_t* index) {
  const absl::string_view arg = absl::string_view(args[*index]).substr(2);
  const size_t equals = arg.find('=');
  const absl::string_view name = arg.substr(0, equals);
  const Option* option = FindOption(name);
  if (option == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("unknown flag --", name, "; see ", program_, " --help"));
  }
  if (equals != absl::string_view::npos) return std::pair(option, std::string(arg.substr(equals + 1)));
  if (option->value_name.empty()) return std::pair(option, std::string("true"));
  if (*index + 1 >= args.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", option->name, " needs a value (", option->value_name, ")"));
  }
  return std::pair(option, args[++*index]);
}

absl::StatusOr<OptionSet::Outcome> OptionSet::Parse(const std::vector<std::string>& args,
                                                    std::vector<std::string>* positional) {
  std::vector<std::pair<const Option*, std::string>> flags;
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i] == "--help" || args[i] == "-h") {
      std::fputs(HelpText().c_str(), stdout);
      return Outcome::kHelpShown;
    }
    if (args[i] == "--version") {
      std::printf("%s %s\n", program_.c_str(), kVersion);
      return Outcome::kHelpShown;
    }
    const bool ends_flags = args[i] == "--";
    if (ends_flags || !absl::StartsWith(args[i], "--")) {
      const auto rest = args.begin() + i + (ends_flags ? 1 : 0);
      const auto rest_end = ends_flags ? args.end() : rest + 1;
      if (positional == nullptr && rest != rest_end) {
        return absl::InvalidArgumentError(
            absl::StrCat("unexpected argument '", *rest, "'; see ", program_, " --help"));
      }
      if (positional != nullptr) positional->insert(positional->end(), rest, rest_end);
      if (ends_flags) break;
      continue;
    }
    ASSIGN_OR_RETURN(auto flag, ReadFlag(args, &i));
    if (flag.first->name == "config") config_path_ = flag.second;
    flags.push_back(std::move(flag));
  }
  if (!config_path_.empty()) RETURN_IF_ERROR(ApplyFile(config_path_));
  for (const auto& [option, text] : flags) {
    const absl::Status status = option->set(text);
    if (!status.ok())
      return absl::InvalidArgumentError(absl::StrCat("--", option->name, ": ", status.message()));
  }
  return Outcome::kRun;
}

absl::Status OptionSet::ApplyFile(const std::string& path) {
  // yaml-cpp takes a folder for an empty file.
  struct stat info;
  if (stat(path.c_str(), &info) != 0 || S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  }
  // yaml-cpp throws; nothing of it leaves this function.
  try {
    const YAML::Node root = YAML::LoadFile(path);
    if (root.IsNull()) return absl::OkStatus();
    if (!root.IsMap()) {
      return absl::InvalidArgumentError(
          absl::StrCat(Place(path, root.Mark()), "expected `option: value` lines"));
    }
    std::vector<std::string> seen;
    for (const auto& entry : root) {
      const std::string key = entry.first.IsScalar() ? entry.first.Scalar() : "";
      const std::string place = Place(path, entry.first.Mark());
      const Option* option = FindOption(key);
      if (option == nullptr || option->name == "config") {
        return absl::InvalidArgumentError(
            absl::StrCat(place, "unknown key '", key, "'; see ", program_, " --help"));
      }
      if (std::find(seen.begin(), seen.end(), option->name) != seen.end()) {
        return absl::InvalidArgumentError(absl::StrCat(place, "'", key, "' is given twice"));
      }
      seen.push_back(option->name);
      absl::StatusOr<std::string> text = NodeText(entry.second);
      absl::Status status = text.status();
      // Checked even where a flag wins: a wrong file is wrong. The flags are applied after it.
      if (status.ok()) status = option->set(*text);
      if (!status.ok()) {
        return absl::InvalidArgumentError(
            absl::StrCat(Place(path, entry.second.Mark()), key, ": ", status.message()));
      }
    }
  } catch (const YAML::BadFile&) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  } catch (const YAML::ParserException& error) {
    return absl::InvalidArgumentError(absl::StrCat(Place(path, error.mark), error.msg));
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(Place(path, error.mark), error.msg));
  }
  return absl::OkStatus();
}

std::string OptionSet::HelpText() const {
  std::string out = absl::StrCat("usage: ", program_, " ", usage_, "\n\n", summary_, "\n\n");
  for (const Option& option : options_) {
    std::string flag = absl::StrCat("  --", option.name);
    if (!option.value_name.empty()) absl::StrAppend(&flag, " ", option.value_name);
    flag.resize(std::max(flag.size() + 1, kHelpColumn), ' ');
    std::string help = option.help;
    if (!option.default_text.empty()) absl::StrAppend(&help, " (default ", option.default_text, ")");
    absl::StrAppend(&out, flag, Wrap(help, flag.size()), "\n");
  }
  const std::string tail[] = {"  --help", "  --version"};
  const char* tail_help[] = {"print this text", "print the version"};
  for (int i = 0; i < 2; ++i) {
    std::string flag = tail[i];
    flag.resize(kHelpColumn, ' ');
    absl::StrAppend(&out, flag, tail_help[i], "\n");
  }
  return out;
}

}  // namespace millrace
