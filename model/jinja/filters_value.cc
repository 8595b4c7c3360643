// Filters over numbers and values of any kind.
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/jinja/builtins.h"
#include "model/jinja/runtime.h"

namespace millrace::jinja {
namespace {

absl::StatusOr<Value> Default(const Invocation& call) {
  bool empty_too = call.Given(1) && call.runtime.Truth(call[1]);
  if (!call.self.is_undefined() && !(empty_too && !call.runtime.Truth(call.self))) return call.self;
  if (call.Given(0)) return call[0];
  return call.runtime.MakeText("");
}

absl::StatusOr<Value> Length(const Invocation& call) {
  ASSIGN_OR_RETURN(int64_t length, call.runtime.Length(call.self));
  return Value(length);
}

// A number as Python's int() and float() read it: blanks around it, underscores between digits.
std::string PlainNumber(const Text& text) {
  absl::string_view bytes = text.bytes();
  bytes = bytes.substr(0, TrimmedEnd(bytes));
  bytes.remove_prefix(SkipSpace(bytes, 0));
  std::string plain;
  for (size_t i = 0; i < bytes.size() && plain.size() < 400; ++i) {
    bool between = i > 0 && i + 1 < bytes.size() && std::isalnum(static_cast<uint8_t>(bytes[i - 1])) &&
                   std::isalnum(static_cast<uint8_t>(bytes[i + 1]));
    if (bytes[i] != '_' || !between) plain.push_back(bytes[i]);
  }
  if (plain.size() > 1 && plain[0] == '+' && plain[1] != '-') plain.erase(0, 1);
  return plain;
}

std::optional<int64_t> ParseInteger(std::string plain, int base) {
  bool negative = !plain.empty() && plain[0] == '-';
  if (negative) plain.erase(0, 1);
  constexpr absl::string_view kPrefixes[] = {"0x", "0o", "0b"};
  constexpr int kBases[] = {16, 8, 2};
  for (int i = 0; i < 3; ++i) {
    bool prefixed = plain.size() > 2 && plain[0] == '0' && (plain[1] | 0x20) == kPrefixes[i][1];
    if (prefixed && (base == kBases[i] || base == 0)) {
      base = kBases[i];
      plain.erase(0, 2);
      break;
    }
  }
  if (base == 0) base = 10;
  if (plain.empty() || plain[0] == '-' || plain[0] == '+') return std::nullopt;
  if (negative) plain.insert(0, 1, '-');
  int64_t value = 0;
  auto result = std::from_chars(plain.data(), plain.data() + plain.size(), value, base);
  if (result.ec != std::errc() || result.ptr != plain.data() + plain.size()) return std::nullopt;
  return value;
}

std::optional<double> ParseFloat(const std::string& plain) {
  double value = 0;
  auto result = std::from_chars(plain.data(), plain.data() + plain.size(), value);
  if (result.ptr != plain.data() + plain.size() || plain.empty()) return std::nullopt;
  if (result.ec == std::errc::result_out_of_range) {
    bool tiny = plain.find("e-") != std::string::npos || plain.find("E-") != std::string::npos;
    value = tiny ? 0 : std::numeric_limits<double>::infinity();
    return plain[0] == '-' ? -value : value;
  }
  return result.ec == std::errc() ? std::optional<double>(value) : std::nullopt;
}

std::optional<int64_t> Truncate(double number) {
  // Every double of this open range fits.
  if (!(number > -9.2233720368547748e18 && number < 9.2233720368547748e18)) return std::nullopt;
  return static_cast<int64_t>(number);
}

absl::StatusOr<Value> Int(const Invocation& call) {
  Value fallback = call.Given(0) ? call[0] : Value(int64_t{0});
  if (call.self.is_undefined()) return call.runtime.WrongType(call.self, "a number");
  if (auto integer = call.self.integer()) return Value(*integer);
  std::optional<double> number;
  if (call.self.is_float()) number = call.self.number();
  if (const Text* text = call.self.text()) {
    RETURN_IF_ERROR(call.runtime.WorkOn(*text, 4));
    int64_t base = 10;
    if (call.Given(1) && call[1].integer()) base = *call[1].integer();
    if (base != 0 && (base < 2 || base > 36))
      return call.runtime.Error("filter int: a base must be 0 or 2 to 36");
    std::string plain = PlainNumber(*text);
    if (auto integer = ParseInteger(plain, static_cast<int>(base))) return Value(*integer);
    number = ParseFloat(plain);
  }
  if (!number || std::isnan(*number) || std::isinf(*number)) return fallback;
  if (auto integer = Truncate(*number)) return Value(*integer);
  return call.runtime.Error("filter int: the number exceeds 64 bits");
}

absl::StatusOr<Value> Float(const Invocation& call) {
  if (call.self.is_undefined()) return call.runtime.WrongType(call.self, "a number");
  if (call.self.is_number()) return Value(call.self.number());
  if (const Text* text = call.self.text()) {
    RETURN_IF_ERROR(call.runtime.WorkOn(*text, 4));
    if (auto number = ParseFloat(PlainNumber(*text))) return Value(*number);
  }
  return call.Given(0) ? call[0] : Value(0.0);
}

absl::StatusOr<Value> Abs(const Invocation& call) {
  if (!call.self.is_number()) return call.runtime.WrongType(call.self, "a number");
  auto integer = call.self.integer();
  if (!integer) return Value(std::abs(call.self.number()));
  if (*integer == std::numeric_limits<int64_t>::min())
    return call.runtime.Error("filter abs: the result exceeds 64 bits");
  return Value(std::abs(*integer));
}

// Decimal rounding of the exact binary value, halves to even, as Python's round(x, precision >= 0).
double RoundDecimal(double number, int precision) {
  char digits[400];
  auto end = std::to_chars(digits, digits + sizeof digits, number, std::chars_format::fixed, precision).ptr;
  double rounded = number;
  std::from_chars(digits, end, rounded);
  return rounded;
}

absl::StatusOr<Value> Round(const Invocation& call) {
  if (!call.self.is_number()) return call.runtime.WrongType(call.self, "a number");
  int64_t precision = 0;
  if (call.Given(0)) {
    if (!call[0].integer()) return call.runtime.WrongType(call[0], "a precision");
    precision = *call[0].integer();
  }
  if (precision < -20 || precision > 20)
    return call.runtime.Error("filter round: a precision must be -20 to 20");
  std::string method = call.Given(1) && call[1].text() != nullptr ? call[1].text()->bytes() : "common";
  if (method == "common" && call.self.integer() && precision >= 0) return Value(*call.self.integer());
  double number = call.self.number();
  if (!std::isfinite(number)) return Value(number);
  double scale = std::pow(10.0, static_cast<double>(precision));
  if (method == "ceil") return Value(std::ceil(number * scale) / scale);
  if (method == "floor") return Value(std::floor(number * scale) / scale);
  if (method != "common") return call.runtime.Error("filter round: the method must be common, ceil or floor");
  if (precision >= 0) return Value(RoundDecimal(number, static_cast<int>(precision)));
  double rounded = std::nearbyint(number * scale) / scale;
  auto integer = Truncate(rounded);
  return call.self.integer() && integer ? Value(*integer) : Value(rounded);
}

constexpr Builtin kFilters[] = {
    {"abs", "", Abs},
    {"count", "", Length},
    {"d", "default_value? boolean?", Default},
    {"default", "default_value? boolean?", Default},
    {"float", "default?", Float},
    {"int", "default? base?", Int},
    {"length", "", Length},
    {"round", "precision? method?", Round},
};

}  // namespace

absl::Span<const Builtin> ValueFilters() {
  return kFilters;
}

}  // namespace millrace::jinja
