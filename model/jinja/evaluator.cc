// The half of the interpreter that evaluates expressions.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/jinja/interpreter.h"

namespace millrace::jinja {

Interpreter::Result Interpreter::Eval(const Expr& expr, Scope* scope) {
  RETURN_IF_ERROR(runtime_.Step());
  if (++depth_ > kMaxDepth)
    return runtime_.Exhausted(absl::StrCat("nested more than ", kMaxDepth, " levels deep"));
  Result value = EvalNode(expr, scope);
  --depth_;
  return value;
}

Interpreter::Result Interpreter::EvalNode(const Expr& expr, Scope* scope) {
  switch (expr.kind) {
    case ExprKind::kConstant:
      return expr.constant;
    case ExprKind::kName:
      return Name(expr, scope);
    case ExprKind::kTuple:
    case ExprKind::kList:
      return EvalList(expr, scope);
    case ExprKind::kDict:
      return EvalDict(expr, scope);
    case ExprKind::kAttribute: {
      ASSIGN_OR_RETURN(Value object, Eval(*expr.children[0], scope));
      runtime_.set_line(expr.line);
      return runtime_.Attribute(object, expr.name);
    }
    case ExprKind::kItem:
      return EvalItem(expr, scope);
    case ExprKind::kSlice:
      return EvalSlice(expr, scope);
    case ExprKind::kCall:
      return EvalCall(expr, scope);
    case ExprKind::kFilter:
    case ExprKind::kTest:
      return EvalBuiltin(expr, scope, nullptr);
    case ExprKind::kNegate:
    case ExprKind::kPlus:
      return EvalSign(expr, scope);
    case ExprKind::kNot: {
      ASSIGN_OR_RETURN(Value value, Eval(*expr.children[0], scope));
      return Value(!runtime_.Truth(value));
    }
    case ExprKind::kBinary:
      return EvalBinary(expr, scope);
    case ExprKind::kConcat:
      return EvalConcat(expr, scope);
    case ExprKind::kCompare:
      return EvalCompare(expr, scope);
    case ExprKind::kAnd:
    case ExprKind::kOr: {
      ASSIGN_OR_RETURN(Value left, Eval(*expr.children[0], scope));
      if (runtime_.Truth(left) == (expr.kind == ExprKind::kOr)) return left;
      return Eval(*expr.children[1], scope);
    }
    case ExprKind::kConditional:
      return EvalConditional(expr, scope);
    case ExprKind::kNamespaceRef:
      break;
  }
  return runtime_.Error("an assignment target where a value is needed");
}

Interpreter::Result Interpreter::Name(const Expr& expr, Scope* scope) {
  for (Scope* at = scope; at != nullptr; at = at->parent) {
    auto found = at->variables.find(expr.name);
    if (found != at->variables.end()) return found->second;
  }
  const Builtin* function = FindFunction(expr.name);
  if (function == nullptr) return Value(Undefined{expr.name, ""});
  Callable callable;
  callable.name = function->name;
  callable.builtin = function;
  return runtime_.MakeCallable(std::move(callable));
}

Interpreter::Result Interpreter::EvalList(const Expr& expr, Scope* scope) {
  std::vector<Value> items;
  items.reserve(expr.children.size());
  for (const ExprPointer& child : expr.children) {
    ASSIGN_OR_RETURN(Value item, Eval(*child, scope));
    items.push_back(std::move(item));
  }
  return runtime_.MakeList(std::move(items),
                           expr.kind == ExprKind::kTuple ? ListKind::kTuple : ListKind::kList);
}

Interpreter::Result Interpreter::EvalDict(const Expr& expr, Scope* scope) {
  ASSIGN_OR_RETURN(Dict * dict, runtime_.MakeDict());
  for (size_t i = 0; i + 1 < expr.children.size(); i += 2) {
    ASSIGN_OR_RETURN(Value key, Eval(*expr.children[i], scope));
    ASSIGN_OR_RETURN(Value value, Eval(*expr.children[i + 1], scope));
    RETURN_IF_ERROR(runtime_.SetItem(dict, std::move(key), std::move(value)));
  }
  return Value(dict);
}

Interpreter::Result Interpreter::EvalItem(const Expr& expr, Scope* scope) {
  ASSIGN_OR_RETURN(Value object, Eval(*expr.children[0], scope));
  const Expr& key_expr = *expr.children[1];
  ASSIGN_OR_RETURN(Value key, Eval(key_expr, scope));
  runtime_.set_line(expr.line);
  ASSIGN_OR_RETURN(Value item, runtime_.Item(object, key));
  // A constant key lives as long as the template, so that a later error can name it.
  bool named =
      item.is_undefined() && key_expr.kind == ExprKind::kConstant && key_expr.constant.text() != nullptr;
  return named ? Value(Undefined{key_expr.constant.text()->bytes(), object.TypeName()}) : item;
}

Interpreter::Result Interpreter::EvalSlice(const Expr& expr, Scope* scope) {
  ASSIGN_OR_RETURN(Value object, Eval(*expr.children[0], scope));
  Value bounds[3] = {Value(None{}), Value(None{}), Value(None{})};
  for (size_t i = 0; i < 3; ++i) {
    if (expr.children[i + 1] == nullptr) continue;
    ASSIGN_OR_RETURN(bounds[i], Eval(*expr.children[i + 1], scope));
  }
  runtime_.set_line(expr.line);
  return runtime_.Slice(object, bounds);
}

Interpreter::Result Interpreter::EvalSign(const Expr& expr, Scope* scope) {
  ASSIGN_OR_RETURN(Value value, Eval(*expr.children[0], scope));
  runtime_.set_line(expr.line);
  if (!value.is_number()) return runtime_.WrongType(value, "a number");
  Value zero(int64_t{0});
  if (value.is_float()) return Value(expr.kind == ExprKind::kNegate ? -value.number() : value.number());
  return runtime_.Apply(expr.kind == ExprKind::kNegate ? Operator::kSubtract : Operator::kAdd, zero, value);
}

Interpreter::Result Interpreter::EvalBinary(const Expr& expr, Scope* scope) {
  ASSIGN_OR_RETURN(Value left, Eval(*expr.children[0], scope));
  ASSIGN_OR_RETURN(Value right, Eval(*expr.children[1], scope));
  runtime_.set_line(expr.line);
  return runtime_.Apply(expr.operators[0], left, right);
}

Interpreter::Result Interpreter::EvalConcat(const Expr& expr, Scope* scope) {
  Text text;
  for (const ExprPointer& child : expr.children) {
    ASSIGN_OR_RETURN(Value part, Eval(*child, scope));
    runtime_.set_line(expr.line);
    RETURN_IF_ERROR(runtime_.AppendText(part, &text));
  }
  return runtime_.MakeText(std::move(text));
}

Interpreter::Result Interpreter::EvalCompare(const Expr& expr, Scope* scope) {
  ASSIGN_OR_RETURN(Value left, Eval(*expr.children[0], scope));
  Value result(true);
  for (size_t i = 0; i < expr.operators.size(); ++i) {
    ASSIGN_OR_RETURN(Value right, Eval(*expr.children[i + 1], scope));
    runtime_.set_line(expr.line);
    ASSIGN_OR_RETURN(result, runtime_.Apply(expr.operators[i], left, right));
    if (!runtime_.Truth(result)) break;
    left = std::move(right);
  }
  return result;
}

Interpreter::Result Interpreter::EvalConditional(const Expr& expr, Scope* scope) {
  ASSIGN_OR_RETURN(Value condition, Eval(*expr.children[0], scope));
  if (runtime_.Truth(condition)) return Eval(*expr.children[1], scope);
  return expr.children[2] == nullptr ? Value() : Eval(*expr.children[2], scope);
}

absl::StatusOr<Arguments> Interpreter::EvalArguments(const Expr& call, Scope* scope) {
  Arguments arguments;
  for (size_t i = 1; i < call.children.size(); ++i) {
    ASSIGN_OR_RETURN(Value argument, Eval(*call.children[i], scope));
    arguments.positional.push_back(std::move(argument));
  }
  for (const auto& [name, expr] : call.keywords) {
    ASSIGN_OR_RETURN(Value argument, Eval(*expr, scope));
    arguments.keywords.emplace_back(name, std::move(argument));
  }
  return arguments;
}

Interpreter::Result Interpreter::EvalBuiltin(const Expr& expr, Scope* scope, const Value* input) {
  // Chained filters of a block have their operand at the innermost one.
  Value self;
  if (expr.children[0] == nullptr) {
    self = *input;
  } else if (input != nullptr) {
    ASSIGN_OR_RETURN(self, EvalBuiltin(*expr.children[0], scope, input));
  } else {
    ASSIGN_OR_RETURN(self, Eval(*expr.children[0], scope));
  }
  ASSIGN_OR_RETURN(Arguments arguments, EvalArguments(expr, scope));
  runtime_.set_line(expr.line);
  if (expr.builtin == nullptr) {
    return runtime_.Error(
        absl::StrCat("no ", expr.kind == ExprKind::kTest ? "test" : "filter", " named '", expr.name, "'"));
  }
  return CallBuiltin(runtime_, *expr.builtin, self, arguments);
}

Interpreter::Result Interpreter::EvalCall(const Expr& expr, Scope* scope) {
  ASSIGN_OR_RETURN(Value callee, Eval(*expr.children[0], scope));
  ASSIGN_OR_RETURN(Arguments arguments, EvalArguments(expr, scope));
  runtime_.set_line(expr.line);
  return Call(callee, arguments, nullptr);
}

Interpreter::Result Interpreter::Call(const Value& callee, const Arguments& arguments, const Value* caller) {
  const Callable* callable = callee.callable();
  if (callable == nullptr) return runtime_.WrongType(callee, "something to call");
  if (callable->macro != nullptr) return CallMacro(*callable, arguments, caller);
  return CallBuiltin(runtime_, *callable->builtin, callable->self, arguments);
}

absl::Status Interpreter::BindParameters(const Stmt& macro, const Arguments& arguments, Scope* inner) {
  const std::vector<Parameter>& parameters = macro.parameters;
  RETURN_IF_ERROR(runtime_.Step(static_cast<int64_t>(parameters.size() * (1 + arguments.keywords.size()))));
  if (arguments.positional.size() > parameters.size()) {
    return runtime_.Error(absl::StrCat("macro ", macro.name, ": ", arguments.positional.size(),
                                       " arguments, takes at most ", parameters.size()));
  }
  for (size_t i = 0; i < arguments.positional.size(); ++i) {
    inner->variables[parameters[i].name] = arguments.positional[i];
  }
  for (const auto& [name, value] : arguments.keywords) {
    bool known = false;
    for (const Parameter& parameter : parameters) known |= parameter.name == name;
    if (!known) return runtime_.Error(absl::StrCat("macro ", macro.name, ": no parameter '", name, "'"));
    if (!inner->variables.emplace(name, value).second) {
      return runtime_.Error(absl::StrCat("macro ", macro.name, ": parameter '", name, "' given twice"));
    }
  }
  for (const Parameter& parameter : parameters) {
    if (inner->variables.contains(parameter.name)) continue;
    Value value(Undefined{parameter.name, ""});
    if (parameter.fallback != nullptr) {
      ASSIGN_OR_RETURN(value, Eval(*parameter.fallback, inner));
    }
    inner->variables[parameter.name] = std::move(value);
  }
  return absl::OkStatus();
}

Interpreter::Result Interpreter::CallMacro(const Callable& callable, const Arguments& arguments,
                                           const Value* caller) {
  ASSIGN_OR_RETURN(Scope * inner, runtime_.MakeScope(callable.scope));
  RETURN_IF_ERROR(BindParameters(*callable.macro, arguments, inner));
  if (caller != nullptr) inner->variables["caller"] = *caller;
  return Capture(callable.macro->body, inner);
}

}  // namespace millrace::jinja
