// Runs a parsed template.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/jinja/ast.h"
#include "model/jinja/runtime.h"

namespace millrace::jinja {

// Thread: one. The template and the runtime outlive it.
class Interpreter {
 public:
  explicit Interpreter(Runtime* runtime) : runtime_(*runtime) {}

  // `globals`: the variables of the template. INVALID_ARGUMENT, RESOURCE_EXHAUSTED: with the line.
  absl::StatusOr<Text> Run(const Template& source, Scope* globals);

 private:
  enum class Flow { kNormal, kBreak, kContinue };
  using FlowResult = absl::StatusOr<Flow>;
  using Result = absl::StatusOr<Value>;
  class DepthGuard;

  absl::Status Emit(const Value& value);
  FlowResult RunBody(const std::vector<Stmt>& body, Scope* scope);
  FlowResult RunStatement(const Stmt& stmt, Scope* scope);
  FlowResult RunFor(const Stmt& stmt, Scope* scope);
  FlowResult RunIf(const Stmt& stmt, Scope* scope);
  absl::Status RunMacro(const Stmt& stmt, Scope* scope);
  absl::Status RunSetBlock(const Stmt& stmt, Scope* scope);
  absl::Status RunCallBlock(const Stmt& stmt, Scope* scope);
  absl::Status RunFilterBlock(const Stmt& stmt, Scope* scope);
  FlowResult RunWith(const Stmt& stmt, Scope* scope);
  // What the body prints, in a scope of its own.
  Result Capture(const std::vector<Stmt>& body, Scope* scope);
  absl::StatusOr<std::vector<Value>> LoopItems(const Stmt& stmt, Scope* scope, Scope* inner);
  absl::Status Assign(const Expr& target, Value value, Scope* scope);
  absl::Status AssignNamespace(const Expr& target, Value value, Scope* scope);

  Result Eval(const Expr& expr, Scope* scope);
  Result EvalNode(const Expr& expr, Scope* scope);
  Result EvalList(const Expr& expr, Scope* scope);
  Result EvalDict(const Expr& expr, Scope* scope);
  Result EvalItem(const Expr& expr, Scope* scope);
  Result EvalSlice(const Expr& expr, Scope* scope);
  Result EvalBinary(const Expr& expr, Scope* scope);
  Result EvalSign(const Expr& expr, Scope* scope);
  Result EvalCompare(const Expr& expr, Scope* scope);
  Result EvalConcat(const Expr& expr, Scope* scope);
  Result EvalConditional(const Expr& expr, Scope* scope);
  Result EvalCall(const Expr& expr, Scope* scope);
  // A filter or test; `input` is the output of a block for a filter without an operand of its own.
  Result EvalBuiltin(const Expr& expr, Scope* scope, const Value* input);
  Result Name(const Expr& expr, Scope* scope);
  absl::StatusOr<Arguments> EvalArguments(const Expr& call, Scope* scope);
  Result Call(const Value& callee, const Arguments& arguments, const Value* caller);
  Result CallMacro(const Callable& callable, const Arguments& arguments, const Value* caller);
  absl::Status BindParameters(const Stmt& macro, const Arguments& arguments, Scope* inner);

  Runtime& runtime_;
  Text* output_ = nullptr;  // where printing goes: the result, or a capture
  int depth_ = 0;
};

}  // namespace millrace::jinja
