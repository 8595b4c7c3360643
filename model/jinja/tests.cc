// The tests behind `is`.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/jinja/builtins.h"
#include "model/jinja/runtime.h"
#include "model/jinja/text_ops.h"

namespace millrace::jinja {
namespace {

using Predicate = bool (*)(const Value&);

template <Predicate kPredicate>
absl::StatusOr<Value> Is(const Invocation& call) {
  return Value(kPredicate(call.self));
}

bool Boolean(const Value& v) {
  return v.is_bool();
}
bool CallableValue(const Value& v) {
  return v.callable() != nullptr;
}
bool Defined(const Value& v) {
  return !v.is_undefined();
}
bool UndefinedValue(const Value& v) {
  return v.is_undefined();
}
bool NoneValue(const Value& v) {
  return v.is_none();
}
bool TrueValue(const Value& v) {
  return v.is_bool() && v.number() == 1;
}
bool FalseValue(const Value& v) {
  return v.is_bool() && v.number() == 0;
}
bool Integer(const Value& v) {
  return v.is_integer();
}
bool Float(const Value& v) {
  return v.is_float();
}
bool Number(const Value& v) {
  return v.is_number();
}
bool String(const Value& v) {
  return v.is_text();
}
bool Mapping(const Value& v) {
  return v.dict() != nullptr;
}
bool Iterable(const Value& v) {
  return v.is_undefined() || v.is_text() || v.list() != nullptr || v.dict() != nullptr || v.loop() != nullptr;
}
bool Sequence(const Value& v) {
  if (v.list() != nullptr) return v.list()->kind <= ListKind::kTuple;
  return v.is_undefined() || v.is_text() || v.dict() != nullptr;
}

template <Operator kOperator>
absl::StatusOr<Value> Compare(const Invocation& call) {
  return call.runtime.Apply(kOperator, call.self, call[0]);
}

absl::StatusOr<Value> SameAs(const Invocation& call) {
  return Value(call.self.SameAs(call[0]));
}

template <int kRest>
absl::StatusOr<Value> Parity(const Invocation& call) {
  ASSIGN_OR_RETURN(Value rest, call.runtime.Apply(Operator::kModulo, call.self, Value(int64_t{2})));
  return Value(rest.is_number() && rest.number() == kRest);
}

absl::StatusOr<Value> DivisibleBy(const Invocation& call) {
  ASSIGN_OR_RETURN(Value rest, call.runtime.Apply(Operator::kModulo, call.self, call[0]));
  return Value(rest.is_number() && rest.number() == 0);
}

// str.islower and str.isupper: some character has a case, and none the other one.
template <CaseForm kForm>
absl::StatusOr<Value> InCase(const Invocation& call) {
  ASSIGN_OR_RETURN(Text text, call.runtime.ToText(call.self));
  RETURN_IF_ERROR(call.runtime.WorkOn(text, 64));
  bool cased = false;
  for (size_t p = 0; p < text.size();) {
    Character c = DecodeCharacter(text.bytes(), p);
    std::string as_is;
    std::string lower;
    AppendUtf8(c.code, &as_is);
    AppendCase(c.code, CaseForm::kLower, &lower);
    if (IsCased(c.code)) {
      cased = true;
      if ((lower == as_is) != (kForm == CaseForm::kLower)) return Value(false);
    }
    p += c.size;
  }
  return Value(cased);
}

template <bool kFilter>
absl::StatusOr<Value> Exists(const Invocation& call) {
  if (call.self.text() == nullptr) return Value(false);
  const std::string& name = call.self.text()->bytes();
  return Value((kFilter ? FindFilter(name) : FindTest(name)) != nullptr);
}

constexpr Builtin kTests[] = {
    {"!=", "other", Compare<Operator::kNotEqual>},
    {"<", "other", Compare<Operator::kLess>},
    {"<=", "other", Compare<Operator::kLessOrEqual>},
    {"==", "other", Compare<Operator::kEqual>},
    {">", "other", Compare<Operator::kGreater>},
    {">=", "other", Compare<Operator::kGreaterOrEqual>},
    {"boolean", "", Is<Boolean>},
    {"callable", "", Is<CallableValue>},
    {"defined", "", Is<Defined>},
    {"divisibleby", "num", DivisibleBy},
    {"eq", "other", Compare<Operator::kEqual>},
    {"equalto", "other", Compare<Operator::kEqual>},
    {"even", "", Parity<0>},
    {"false", "", Is<FalseValue>},
    {"filter", "", Exists<true>},
    {"float", "", Is<Float>},
    {"ge", "other", Compare<Operator::kGreaterOrEqual>},
    {"greaterthan", "other", Compare<Operator::kGreater>},
    {"gt", "other", Compare<Operator::kGreater>},
    {"in", "seq", Compare<Operator::kIn>},
    {"integer", "", Is<Integer>},
    {"iterable", "", Is<Iterable>},
    {"le", "other", Compare<Operator::kLessOrEqual>},
    {"lessthan", "other", Compare<Operator::kLess>},
    {"lower", "", InCase<CaseForm::kLower>},
    {"lt", "other", Compare<Operator::kLess>},
    {"mapping", "", Is<Mapping>},
    {"ne", "other", Compare<Operator::kNotEqual>},
    {"none", "", Is<NoneValue>},
    {"number", "", Is<Number>},
    {"odd", "", Parity<1>},
    {"sameas", "other", SameAs},
    {"sequence", "", Is<Sequence>},
    {"string", "", Is<String>},
    {"test", "", Exists<false>},
    {"true", "", Is<TrueValue>},
    {"undefined", "", Is<UndefinedValue>},
    {"upper", "", InCase<CaseForm::kUpper>},
};

}  // namespace

const Builtin* FindTest(absl::string_view name) {
  auto row =
      std::find_if(std::begin(kTests), std::end(kTests), [&](const Builtin& b) { return b.name == name; });
  return row == std::end(kTests) ? nullptr : row;
}

}  // namespace millrace::jinja
