// Python's operators over values.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/jinja/format.h"
#include "model/jinja/runtime.h"

namespace millrace::jinja {
namespace {

absl::string_view Symbol(Operator op) {
  constexpr absl::string_view kSymbols[] = {
      "+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "in", "not in"};
  return kSymbols[static_cast<size_t>(op)];
}

int64_t FloorModulo(int64_t a, int64_t b) {
  int64_t rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

double FloorModulo(double a, double b) {
  double rest = std::fmod(a, b);
  if (rest == 0) return std::copysign(0.0, b);
  return (rest < 0) != (b < 0) ? rest + b : rest;
}

double FloorDivide(double a, double b) {
  double rest = std::fmod(a, b);
  double quotient = (a - rest) / b;
  if (rest != 0 && (rest < 0) != (b < 0)) quotient -= 1;
  if (quotient == 0) return std::copysign(0.0, a / b);
  double floor = std::floor(quotient);
  return quotient - floor > 0.5 ? floor + 1 : floor;
}

// base ** exponent for exponent >= 0; false on overflow.
bool IntegerPower(int64_t base, int64_t exponent, int64_t* result) {
  *result = 1;
  while (exponent > 0) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(*result, base, result)) return false;
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) return false;
  }
  return true;
}

// False on overflow. REQUIRES: a divisor other than 0; no true division, no negative exponent.
bool ApplyIntegers(Operator op, int64_t a, int64_t b, int64_t* result) {
  switch (op) {
    case Operator::kAdd:
      return !__builtin_add_overflow(a, b, result);
    case Operator::kSubtract:
      return !__builtin_sub_overflow(a, b, result);
    case Operator::kMultiply:
      return !__builtin_mul_overflow(a, b, result);
    case Operator::kFloorDivide:
      if (b == -1) return !__builtin_sub_overflow(int64_t{0}, a, result);
      *result = (a - FloorModulo(a, b)) / b;
      return true;
    case Operator::kModulo:
      *result = b == -1 ? 0 : FloorModulo(a, b);
      return true;
    default:
      return IntegerPower(a, b, result);
  }
}

}  // namespace

absl::StatusOr<Value> Runtime::ApplyNumbers(Operator op, const Value& a, const Value& b) {
  bool divides = op == Operator::kDivide || op == Operator::kFloorDivide || op == Operator::kModulo;
  if (divides && b.number() == 0) return Error("division by zero");
  auto x = a.integer();
  auto y = b.integer();
  if (x && y && op != Operator::kDivide && !(op == Operator::kPower && *y < 0)) {
    int64_t result = 0;
    if (ApplyIntegers(op, *x, *y, &result)) return Value(result);
    return Error(absl::StrCat("the result of ", *x, " ", Symbol(op), " ", *y, " exceeds 64 bits"));
  }
  double p = a.number();
  double q = b.number();
  switch (op) {
    case Operator::kAdd:
      return Value(p + q);
    case Operator::kSubtract:
      return Value(p - q);
    case Operator::kMultiply:
      return Value(p * q);
    case Operator::kDivide:
      return Value(p / q);
    case Operator::kFloorDivide:
      return Value(FloorDivide(p, q));
    case Operator::kModulo:
      return Value(FloorModulo(p, q));
    default: {
      if (p == 0 && q < 0) return Error("zero cannot be raised to a negative power");
      if (p < 0 && std::floor(q) != q) return Error("a negative number raised to a fraction is not real");
      double power = std::pow(p, q);
      if (std::isinf(power) && std::isfinite(p) && std::isfinite(q))
        return Error("the result of ** is too large");
      return Value(power);
    }
  }
}

absl::StatusOr<Value> Runtime::Add(const Value& a, const Value& b) {
  if (a.text() != nullptr && b.text() != nullptr) {
    Text sum = *a.text();
    sum.Append(*b.text());
    return MakeText(std::move(sum));
  }
  const List* left = a.list();
  const List* right = b.list();
  if (left != nullptr && right != nullptr && left->kind == right->kind && left->kind <= ListKind::kTuple) {
    RETURN_IF_ERROR(Step(static_cast<int64_t>(left->items.size() + right->items.size())));
    std::vector<Value> items = left->items;
    items.insert(items.end(), right->items.begin(), right->items.end());
    return MakeList(std::move(items), left->kind);
  }
  if (a.is_undefined()) return WrongType(a, "an operand of +");
  if (b.is_undefined()) return WrongType(b, "an operand of +");
  return Error(absl::StrCat("cannot add ", a.TypeName(), " and ", b.TypeName()));
}

absl::StatusOr<Value> Runtime::Repeat(const Value& sequence, int64_t count) {
  count = std::max<int64_t>(count, 0);
  if (const Text* text = sequence.text()) {
    Text repeated;
    if (text->empty()) count = 0;
    RETURN_IF_ERROR(Work(std::min(static_cast<size_t>(count), kMaxTextBytes + 1), 2));
    for (int64_t i = 0; i < count && !repeated.too_long(); ++i) repeated.Append(*text);
    return MakeText(std::move(repeated));
  }
  const List& list = *sequence.list();
  if (list.items.empty()) count = 0;
  int64_t total = 0;
  if (__builtin_mul_overflow(count, static_cast<int64_t>(list.items.size()), &total)) total = kMaxSteps + 1;
  RETURN_IF_ERROR(Step(std::min(total, kMaxSteps + 1)));
  std::vector<Value> items;
  items.reserve(static_cast<size_t>(total));
  for (int64_t i = 0; i < count; ++i) items.insert(items.end(), list.items.begin(), list.items.end());
  return MakeList(std::move(items), list.kind);
}

absl::StatusOr<Value> Runtime::Apply(Operator op, const Value& a, const Value& b) {
  switch (op) {
    case Operator::kEqual:
    case Operator::kNotEqual: {
      ASSIGN_OR_RETURN(bool equal, Equal(a, b));
      return Value(equal == (op == Operator::kEqual));
    }
    case Operator::kIn:
    case Operator::kNotIn: {
      ASSIGN_OR_RETURN(bool contained, Contains(b, a));
      return Value(contained == (op == Operator::kIn));
    }
    case Operator::kLess:
    case Operator::kGreater: {
      ASSIGN_OR_RETURN(bool less, op == Operator::kLess ? Less(a, b) : Less(b, a));
      return Value(less);
    }
    case Operator::kLessOrEqual:
    case Operator::kGreaterOrEqual: {
      // Not the negation of <: neither holds for NaN.
      ASSIGN_OR_RETURN(bool less, op == Operator::kLessOrEqual ? Less(a, b) : Less(b, a));
      ASSIGN_OR_RETURN(bool equal, Equal(a, b));
      return Value(less || equal);
    }
    default:
      break;
  }
  if (a.is_number() && b.is_number()) return ApplyNumbers(op, a, b);
  if (op == Operator::kAdd) return Add(a, b);
  auto repeatable = [](const Value& v) {
    return v.text() != nullptr || (v.list() != nullptr && v.list()->kind <= ListKind::kTuple);
  };
  if (op == Operator::kMultiply && repeatable(a) && b.integer()) return Repeat(a, *b.integer());
  if (op == Operator::kMultiply && repeatable(b) && a.integer()) return Repeat(b, *a.integer());
  if (op == Operator::kModulo && a.text() != nullptr) {
    ASSIGN_OR_RETURN(Text text, FormatPercent(*this, *a.text(), b));
    return MakeText(std::move(text));
  }
  std::string wanted = absl::StrCat("an operand of ", Symbol(op));
  return WrongType(a.is_number() || b.is_undefined() ? b : a, wanted);
}

absl::StatusOr<bool> Runtime::EqualLists(const List& a, const List& b, int depth) {
  if (&a == &b) return true;
  if (a.kind != b.kind || a.kind > ListKind::kTuple || a.items.size() != b.items.size()) return false;
  for (size_t i = 0; i < a.items.size(); ++i) {
    ASSIGN_OR_RETURN(bool equal, Equal(a.items[i], b.items[i], depth + 1));
    if (!equal) return false;
  }
  return true;
}

absl::StatusOr<bool> Runtime::EqualDicts(const Dict& a, const Dict& b, int depth) {
  if (&a == &b) return true;
  if (a.items.size() != b.items.size()) return false;
  for (const auto& [key, value] : a.items) {
    bool found = false;
    for (const auto& [other_key, other_value] : b.items) {
      ASSIGN_OR_RETURN(bool same_key, Equal(key, other_key, depth + 1));
      if (!same_key) continue;
      ASSIGN_OR_RETURN(found, Equal(value, other_value, depth + 1));
      break;
    }
    if (!found) return false;
  }
  return true;
}

absl::StatusOr<bool> Runtime::Equal(const Value& a, const Value& b, int depth) {
  RETURN_IF_ERROR(Step());
  if (depth > kMaxDepth) return Exhausted("values nested too deeply");
  if (a.is_number() && b.is_number()) {
    return a.integer() && b.integer() ? *a.integer() == *b.integer() : a.number() == b.number();
  }
  if (const Text* x = a.text(), *y = b.text(); x != nullptr && y != nullptr) {
    if (x->size() != y->size()) return false;
    RETURN_IF_ERROR(WorkOn(*x));
    return x->bytes() == y->bytes();
  }
  if (a.list() != nullptr && b.list() != nullptr) return EqualLists(*a.list(), *b.list(), depth);
  if (a.dict() != nullptr && b.dict() != nullptr) return EqualDicts(*a.dict(), *b.dict(), depth);
  return (a.is_undefined() && b.is_undefined()) || a.SameAs(b);
}

absl::StatusOr<bool> Runtime::Less(const Value& a, const Value& b, int depth) {
  RETURN_IF_ERROR(Step());
  if (depth > kMaxDepth) return Exhausted("values nested too deeply");
  if (a.is_number() && b.is_number()) {
    return a.integer() && b.integer() ? *a.integer() < *b.integer() : a.number() < b.number();
  }
  if (a.text() != nullptr && b.text() != nullptr) {
    RETURN_IF_ERROR(Work(std::min(a.text()->size(), b.text()->size())));
    return a.text()->bytes() < b.text()->bytes();  // UTF-8 sorts as its code points do
  }
  const List* left = a.list();
  const List* right = b.list();
  if (left != nullptr && right != nullptr && left->kind == right->kind && left->kind <= ListKind::kTuple) {
    for (size_t i = 0; i < left->items.size() && i < right->items.size(); ++i) {
      ASSIGN_OR_RETURN(bool equal, Equal(left->items[i], right->items[i], depth + 1));
      if (!equal) return Less(left->items[i], right->items[i], depth + 1);
    }
    return left->items.size() < right->items.size();
  }
  if (a.is_undefined()) return WrongType(a, "an operand of <");
  if (b.is_undefined()) return WrongType(b, "an operand of <");
  return Error(absl::StrCat("cannot order ", a.TypeName(), " and ", b.TypeName()));
}

absl::StatusOr<bool> Runtime::Contains(const Value& container, const Value& item) {
  if (const Text* text = container.text()) {
    const Text* part = item.text();
    if (part == nullptr) return WrongType(item, "a string to look for in a string");
    RETURN_IF_ERROR(Work(text->size() + part->size(), 2));
    return memmem(text->bytes().data(), text->size(), part->bytes().data(), part->size()) != nullptr;
  }
  if (const Dict* dict = container.dict()) {
    for (const auto& entry : dict->items) {
      ASSIGN_OR_RETURN(bool equal, Equal(entry.first, item));
      if (equal) return true;
    }
    return false;
  }
  if (container.list() == nullptr && !container.is_undefined()) return WrongType(container, "a container");
  if (container.list() == nullptr) return false;
  for (const Value& member : container.list()->items) {
    ASSIGN_OR_RETURN(bool equal, Equal(member, item));
    if (equal) return true;
  }
  return false;
}

}  // namespace millrace::jinja
