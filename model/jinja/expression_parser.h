// The half of the parser that reads expressions, by jinja2's precedence: if-else, or, and, not, comparisons,
// + -, ~,
// * / // %, **, signs, then calls, attributes, filters and tests.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "model/jinja/ast.h"
#include "model/jinja/token_stream.h"

namespace millrace::jinja {

// How a list of expressions without brackets is read.
struct TupleRules {
  bool targets_only = false;          // names and tuples of them, as left of "=" or "in"
  bool with_namespace = false;        // and ns.attribute
  bool with_conditional = true;       // a if b else c
  bool explicit_parentheses = false;  // an empty tuple is one
  absl::string_view end_name;         // a name that ends it
};

class ExpressionParser {
 public:
  using Result = absl::StatusOr<ExprPointer>;
  explicit ExpressionParser(TokenStream* tokens) : tokens_(*tokens) {}

  Result ParseTuple(const TupleRules& rules);
  Result ParseExpression();
  // Names, tuples and namespace attributes that can be assigned to.
  Result ParseTarget(const TupleRules& rules);
  // Filters behind `value`; null: those of a block, the first one without its "|" if `inline_start`.
  Result ParseFilters(ExprPointer value, bool inline_start);
  Result ParseCall(ExprPointer callee);
  // (name, name=default, ...)
  absl::StatusOr<std::vector<Parameter>> ParseParameters();

  // Inside an if an unknown filter or test fails only when it is reached, as in jinja2.
  void set_conditional(int change) { conditional_ += change; }
  int depth() const { return depth_; }
  absl::Status Enter();
  void Leave() { --depth_; }

 private:
  Result ParseConditional();
  Result ParseOr();
  Result ParseAnd();
  Result ParseNot();
  Result ParseCompare();
  Result ParseSum();
  Result ParseConcat();
  Result ParseProduct();
  Result ParsePower();
  Result ParseUnary(bool with_filters);
  Result ParsePrimary(bool with_namespace);
  Result ParseNameOrConstant(bool with_namespace);
  Result ParseList();
  Result ParseDict();
  Result ParsePostfix(ExprPointer node);
  Result ParseFiltersAndTests(ExprPointer node);
  Result ParseSubscript(ExprPointer node);
  Result ParseSubscribed();
  Result ParseSliceParts(ExprPointer start, int line);
  Result ParseTest(ExprPointer node);
  absl::Status ParseArguments(Expr* call);
  bool IsTupleEnd(const TupleRules& rules) const;
  absl::Status CheckTarget(const Expr& target) const;
  absl::StatusOr<std::string> ParseDottedName();
  using Level = Result (ExpressionParser::*)();
  Result ParseBinary(Level operand, const std::vector<std::pair<absl::string_view, Operator>>& operators);

  ExprPointer Make(ExprKind kind, int line) const;
  // Adds a child; an error once the tree is too deep to walk.
  absl::Status Adopt(Expr* parent, ExprPointer child) const;
  absl::Status CheckDepth(const Expr& node) const;

  TokenStream& tokens_;
  int depth_ = 0;
  int conditional_ = 0;
};

}  // namespace millrace::jinja
