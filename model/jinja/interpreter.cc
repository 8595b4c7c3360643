#include "model/jinja/interpreter.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace millrace::jinja {

absl::StatusOr<Text> Interpreter::Run(const Template& source, Scope* globals) {
  Text output;
  output_ = &output;
  FlowResult flow = RunBody(source.body, globals);
  output_ = nullptr;
  RETURN_IF_ERROR(flow.status());
  return output;
}

absl::Status Interpreter::Emit(const Value& value) {
  RETURN_IF_ERROR(runtime_.AppendText(value, output_));
  if (output_->too_long()) return runtime_.Exhausted(absl::StrCat("output over ", kMaxTextBytes, " bytes"));
  return absl::OkStatus();
}

Interpreter::FlowResult Interpreter::RunBody(const std::vector<Stmt>& body, Scope* scope) {
  if (++depth_ > kMaxDepth)
    return runtime_.Exhausted(absl::StrCat("nested more than ", kMaxDepth, " levels deep"));
  for (const Stmt& stmt : body) {
    runtime_.set_line(stmt.line);
    RETURN_IF_ERROR(runtime_.Step());
    ASSIGN_OR_RETURN(Flow flow, RunStatement(stmt, scope));
    if (flow != Flow::kNormal) {
      --depth_;
      return flow;
    }
  }
  --depth_;
  return Flow::kNormal;
}

Interpreter::FlowResult Interpreter::RunStatement(const Stmt& stmt, Scope* scope) {
  switch (stmt.kind) {
    case StmtKind::kText:
      RETURN_IF_ERROR(Emit(stmt.text));
      break;
    case StmtKind::kOutput: {
      ASSIGN_OR_RETURN(Value value, Eval(*stmt.expr, scope));
      RETURN_IF_ERROR(Emit(value));
      break;
    }
    case StmtKind::kSet: {
      ASSIGN_OR_RETURN(Value value, Eval(*stmt.expr, scope));
      RETURN_IF_ERROR(Assign(*stmt.target, std::move(value), scope));
      break;
    }
    case StmtKind::kFor:
      return RunFor(stmt, scope);
    case StmtKind::kIf:
      return RunIf(stmt, scope);
    case StmtKind::kWith:
      return RunWith(stmt, scope);
    case StmtKind::kScope: {
      ASSIGN_OR_RETURN(Scope * inner, runtime_.MakeScope(scope));
      return RunBody(stmt.body, inner);
    }
    case StmtKind::kSetBlock:
      RETURN_IF_ERROR(RunSetBlock(stmt, scope));
      break;
    case StmtKind::kMacro:
      RETURN_IF_ERROR(RunMacro(stmt, scope));
      break;
    case StmtKind::kCallBlock:
      RETURN_IF_ERROR(RunCallBlock(stmt, scope));
      break;
    case StmtKind::kFilterBlock:
      RETURN_IF_ERROR(RunFilterBlock(stmt, scope));
      break;
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNormal;
}

absl::StatusOr<std::vector<Value>> Interpreter::LoopItems(const Stmt& stmt, Scope* scope, Scope* inner) {
  ASSIGN_OR_RETURN(Value sequence, Eval(*stmt.expr, scope));
  ASSIGN_OR_RETURN(std::vector<Value> items, runtime_.Iterate(sequence));
  if (stmt.filter == nullptr) return items;
  std::vector<Value> kept;
  for (Value& item : items) {
    inner->variables.clear();
    RETURN_IF_ERROR(Assign(*stmt.target, item, inner));
    ASSIGN_OR_RETURN(Value passes, Eval(*stmt.filter, inner));
    if (runtime_.Truth(passes)) kept.push_back(std::move(item));
  }
  return kept;
}

Interpreter::FlowResult Interpreter::RunFor(const Stmt& stmt, Scope* scope) {
  ASSIGN_OR_RETURN(Scope * inner, runtime_.MakeScope(scope));
  ASSIGN_OR_RETURN(std::vector<Value> items, LoopItems(stmt, scope, inner));
  if (items.empty()) {
    inner->variables.clear();
    return RunBody(stmt.otherwise, inner);
  }
  ASSIGN_OR_RETURN(LoopState * loop, runtime_.MakeLoop(std::move(items)));
  for (size_t i = 0; i < loop->items.size(); ++i) {
    runtime_.set_line(stmt.line);
    RETURN_IF_ERROR(runtime_.Step());
    loop->index0 = i;
    inner->variables.clear();
    inner->variables["loop"] = Value(loop);
    RETURN_IF_ERROR(Assign(*stmt.target, loop->items[i], inner));
    ASSIGN_OR_RETURN(Flow flow, RunBody(stmt.body, inner));
    if (flow == Flow::kBreak) break;
  }
  return Flow::kNormal;
}

Interpreter::FlowResult Interpreter::RunIf(const Stmt& stmt, Scope* scope) {
  for (const Branch& branch : stmt.branches) {
    if (branch.condition != nullptr) {
      ASSIGN_OR_RETURN(Value condition, Eval(*branch.condition, scope));
      if (!runtime_.Truth(condition)) continue;
    }
    return RunBody(branch.body, scope);
  }
  return Flow::kNormal;
}

absl::Status Interpreter::RunMacro(const Stmt& stmt, Scope* scope) {
  Callable callable;
  callable.name = stmt.name;
  callable.macro = &stmt;
  callable.scope = scope;
  ASSIGN_OR_RETURN(scope->variables[stmt.name], runtime_.MakeCallable(std::move(callable)));
  return absl::OkStatus();
}

Interpreter::Result Interpreter::Capture(const std::vector<Stmt>& body, Scope* scope) {
  ASSIGN_OR_RETURN(Scope * inner, runtime_.MakeScope(scope));
  Text captured;
  Text* outer = std::exchange(output_, &captured);
  FlowResult flow = RunBody(body, inner);
  output_ = outer;
  RETURN_IF_ERROR(flow.status());
  return runtime_.MakeText(std::move(captured));
}

absl::Status Interpreter::RunSetBlock(const Stmt& stmt, Scope* scope) {
  ASSIGN_OR_RETURN(Value value, Capture(stmt.body, scope));
  if (stmt.expr != nullptr) {
    ASSIGN_OR_RETURN(value, EvalBuiltin(*stmt.expr, scope, &value));
  }
  return Assign(*stmt.target, std::move(value), scope);
}

absl::Status Interpreter::RunFilterBlock(const Stmt& stmt, Scope* scope) {
  ASSIGN_OR_RETURN(Value value, Capture(stmt.body, scope));
  ASSIGN_OR_RETURN(value, EvalBuiltin(*stmt.expr, scope, &value));
  return Emit(value);
}

absl::Status Interpreter::RunCallBlock(const Stmt& stmt, Scope* scope) {
  Callable body;
  body.name = stmt.name;
  body.macro = &stmt;
  body.scope = scope;
  ASSIGN_OR_RETURN(Value caller, runtime_.MakeCallable(std::move(body)));
  ASSIGN_OR_RETURN(Value callee, Eval(*stmt.expr->children[0], scope));
  ASSIGN_OR_RETURN(Arguments arguments, EvalArguments(*stmt.expr, scope));
  runtime_.set_line(stmt.line);
  ASSIGN_OR_RETURN(Value result, Call(callee, arguments, &caller));
  return Emit(result);
}

Interpreter::FlowResult Interpreter::RunWith(const Stmt& stmt, Scope* scope) {
  ASSIGN_OR_RETURN(Scope * inner, runtime_.MakeScope(scope));
  for (const auto& [target, expr] : stmt.assignments) {
    ASSIGN_OR_RETURN(Value value, Eval(*expr, scope));
    RETURN_IF_ERROR(Assign(*target, std::move(value), inner));
  }
  return RunBody(stmt.body, inner);
}

absl::Status Interpreter::AssignNamespace(const Expr& target, Value value, Scope* scope) {
  Expr name;
  name.kind = ExprKind::kName;
  name.name = target.name;
  ASSIGN_OR_RETURN(Value object, Name(name, scope));
  if (object.name_space() == nullptr) {
    return runtime_.Error(absl::StrCat("'", target.name, "' is no namespace, its attributes cannot be set"));
  }
  RETURN_IF_ERROR(runtime_.Hold(static_cast<int64_t>(sizeof(Value))));
  object.name_space()->attributes[target.attribute] = std::move(value);
  return absl::OkStatus();
}

absl::Status Interpreter::Assign(const Expr& target, Value value, Scope* scope) {
  if (target.kind == ExprKind::kName) {
    scope->variables[target.name] = std::move(value);
    return absl::OkStatus();
  }
  runtime_.set_line(target.line);
  if (target.kind == ExprKind::kNamespaceRef) return AssignNamespace(target, std::move(value), scope);
  ASSIGN_OR_RETURN(std::vector<Value> items, runtime_.Iterate(value));
  if (items.size() != target.children.size()) {
    return runtime_.Error(
        absl::StrCat("cannot unpack ", items.size(), " values into ", target.children.size()));
  }
  for (size_t i = 0; i < items.size(); ++i) {
    RETURN_IF_ERROR(Assign(*target.children[i], std::move(items[i]), scope));
  }
  return absl::OkStatus();
}

}  // namespace millrace::jinja
