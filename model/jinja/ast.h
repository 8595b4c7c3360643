// The parsed template. Immutable after parsing; names and texts in it live as long as it does.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/jinja/value.h"

namespace millrace::jinja {

struct Builtin;

enum class Operator : uint8_t {
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
  kEqual,
  kNotEqual,
  kLess,
  kLessOrEqual,
  kGreater,
  kGreaterOrEqual,
  kIn,
  kNotIn,
};

enum class ExprKind : uint8_t {
  kConstant,
  kName,
  kTuple,
  kList,
  kDict,          // children: key, value, key, value, ...
  kAttribute,     // children: object; name
  kItem,          // children: object, key
  kSlice,         // children: object, start, stop, step; null where left out
  kNamespaceRef,  // only as a target: name, attribute
  kCall,          // children: callee, positional arguments
  kFilter,        // children: value (null: the block's output), positional arguments
  kTest,          // children: value, positional arguments
  kNegate,
  kPlus,
  kNot,
  kBinary,   // operators[0]
  kConcat,   // ~
  kCompare,  // children: one more than operators
  kAnd,
  kOr,
  kConditional,  // children: condition, then, else (null: undefined)
};

struct Expr;
using ExprPointer = std::unique_ptr<Expr>;

struct Expr {
  ExprKind kind;
  int line;
  int depth = 1;  // of the tree below, itself included; bounded so that walks may recurse
  Value constant;
  std::string name;
  std::string attribute;
  std::vector<ExprPointer> children;
  std::vector<Operator> operators;
  std::vector<std::pair<std::string, ExprPointer>> keywords;  // of calls, filters and tests
  const Builtin* builtin = nullptr;  // of filters and tests; null: fails when it is reached
};

enum class StmtKind : uint8_t {
  kText,    // text
  kOutput,  // expr
  kFor,
  kIf,
  kSet,       // target = expr
  kSetBlock,  // target = output of body, through the filters in expr (may be null)
  kMacro,
  kCallBlock,  // expr is the call; parameters and body are those of caller()
  kFilterBlock,
  kWith,   // targets and values in `assignments`
  kScope,  // generation
  kBreak,
  kContinue,
};

struct Stmt;

struct Parameter {
  std::string name;
  ExprPointer fallback;  // null: undefined when not given
};

struct Branch {
  ExprPointer condition;  // null: else
  std::vector<Stmt> body;
};

struct Stmt {
  Stmt(StmtKind stmt_kind, int stmt_line) : kind(stmt_kind), line(stmt_line) {}

  StmtKind kind;
  int line;
  Value text;
  ExprPointer target;
  ExprPointer expr;
  ExprPointer filter;  // of a for: its condition
  std::string name;    // of a macro
  std::vector<Parameter> parameters;
  std::vector<std::pair<ExprPointer, ExprPointer>> assignments;
  std::vector<Stmt> body;
  std::vector<Stmt> otherwise;   // of a for: its else
  std::vector<Branch> branches;  // of an if
};

struct Template {
  std::vector<Stmt> body;
};

}  // namespace millrace::jinja
