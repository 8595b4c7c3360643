// What stands behind an operand: attributes, subscripts, calls, filters, tests.
#include <utility>

#include "absl/strings/match.h"
#include "common/status_macros.h"
#include "model/jinja/builtins.h"
#include "model/jinja/expression_parser.h"
#include "model/jinja/runtime.h"

namespace millrace::jinja {

ExpressionParser::Result ExpressionParser::ParsePostfix(ExprPointer node) {
  while (true) {
    if (tokens_.IsOperator(".") || tokens_.IsOperator("[")) {
      ASSIGN_OR_RETURN(node, ParseSubscript(std::move(node)));
    } else if (tokens_.IsOperator("(")) {
      ASSIGN_OR_RETURN(node, ParseCall(std::move(node)));
    } else {
      return node;
    }
  }
}

ExpressionParser::Result ExpressionParser::ParseFiltersAndTests(ExprPointer node) {
  while (true) {
    if (tokens_.IsOperator("|")) {
      ASSIGN_OR_RETURN(node, ParseFilters(std::move(node), false));
    } else if (tokens_.IsName("is")) {
      ASSIGN_OR_RETURN(node, ParseTest(std::move(node)));
    } else if (tokens_.IsOperator("(")) {
      ASSIGN_OR_RETURN(node, ParseCall(std::move(node)));
    } else {
      return node;
    }
  }
}

ExpressionParser::Result ExpressionParser::ParseSubscript(ExprPointer object) {
  Token token = tokens_.Take();
  if (token.text == ".") {
    ExprPointer node = Make(ExprKind::kAttribute, token.line);
    if (tokens_.Is(TokenKind::kName)) {
      node->name = tokens_.Take().text;
      RETURN_IF_ERROR(Adopt(node.get(), std::move(object)));
      return node;
    }
    if (!tokens_.Is(TokenKind::kInteger)) return tokens_.Unexpected("a name or number");
    node->kind = ExprKind::kItem;
    ExprPointer index = Make(ExprKind::kConstant, token.line);
    index->constant = Value(tokens_.Take().integer);
    RETURN_IF_ERROR(Adopt(node.get(), std::move(object)));
    RETURN_IF_ERROR(Adopt(node.get(), std::move(index)));
    return node;
  }
  ASSIGN_OR_RETURN(ExprPointer key, ParseSubscribed());
  if (tokens_.IsOperator(","))
    return TemplateError(tokens_.line(), "subscripts of several parts are not supported");
  RETURN_IF_ERROR(tokens_.ExpectOperator("]"));
  if (key->kind == ExprKind::kSlice) {
    // Parsed without its object, which becomes the first child.
    key->depth = std::max(key->depth, object->depth + 1);
    key->children[0] = std::move(object);
    RETURN_IF_ERROR(CheckDepth(*key));
    return key;
  }
  ExprPointer node = Make(ExprKind::kItem, token.line);
  RETURN_IF_ERROR(Adopt(node.get(), std::move(object)));
  RETURN_IF_ERROR(Adopt(node.get(), std::move(key)));
  return node;
}

ExpressionParser::Result ExpressionParser::ParseSubscribed() {
  int line = tokens_.line();
  ExprPointer start;
  if (!tokens_.IsOperator(":")) {
    ASSIGN_OR_RETURN(start, ParseExpression());
    if (!tokens_.IsOperator(":")) return start;
  }
  return ParseSliceParts(std::move(start), line);
}

ExpressionParser::Result ExpressionParser::ParseSliceParts(ExprPointer start, int line) {
  ExprPointer slice = Make(ExprKind::kSlice, line);
  ExprPointer stop;
  ExprPointer step;
  tokens_.Advance();
  auto at_end = [this] { return tokens_.IsOperator("]") || tokens_.IsOperator(","); };
  if (!tokens_.IsOperator(":") && !at_end()) {
    ASSIGN_OR_RETURN(stop, ParseExpression());
  }
  if (tokens_.SkipOperator(":") && !at_end()) {
    ASSIGN_OR_RETURN(step, ParseExpression());
  }
  RETURN_IF_ERROR(Adopt(slice.get(), nullptr));  // the object
  RETURN_IF_ERROR(Adopt(slice.get(), std::move(start)));
  RETURN_IF_ERROR(Adopt(slice.get(), std::move(stop)));
  RETURN_IF_ERROR(Adopt(slice.get(), std::move(step)));
  return slice;
}

absl::Status ExpressionParser::ParseArguments(Expr* call) {
  RETURN_IF_ERROR(tokens_.ExpectOperator("("));
  bool first = true;
  while (!tokens_.IsOperator(")")) {
    if (!std::exchange(first, false)) {
      RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      if (tokens_.IsOperator(")")) break;
    }
    if (tokens_.IsOperator("*") || tokens_.IsOperator("**")) {
      return TemplateError(tokens_.line(), "* and ** arguments are not supported");
    }
    std::string keyword;
    bool named = tokens_.Is(TokenKind::kName) && tokens_.next().kind == TokenKind::kOperator &&
                 tokens_.next().text == "=";
    if (named) {
      keyword = tokens_.Take().text;
      tokens_.Advance();
    } else if (!call->keywords.empty()) {
      return TemplateError(tokens_.line(), "a positional argument behind a named one");
    }
    ASSIGN_OR_RETURN(ExprPointer argument, ParseExpression());
    call->depth = std::max(call->depth, argument->depth + 1);
    if (named) {
      call->keywords.emplace_back(std::move(keyword), std::move(argument));
    } else {
      RETURN_IF_ERROR(Adopt(call, std::move(argument)));
    }
  }
  tokens_.Advance();
  return CheckDepth(*call);
}

ExpressionParser::Result ExpressionParser::ParseCall(ExprPointer callee) {
  ExprPointer call = Make(ExprKind::kCall, tokens_.line());
  RETURN_IF_ERROR(Adopt(call.get(), std::move(callee)));
  RETURN_IF_ERROR(ParseArguments(call.get()));
  return call;
}

absl::StatusOr<std::string> ExpressionParser::ParseDottedName() {
  std::string name;
  do {
    if (!tokens_.Is(TokenKind::kName)) return tokens_.Unexpected("the name of a filter or test");
    absl::StrAppend(&name, name.empty() ? "" : ".", tokens_.Take().text);
  } while (tokens_.SkipOperator("."));
  return name;
}

ExpressionParser::Result ExpressionParser::ParseFilters(ExprPointer value, bool inline_start) {
  while (inline_start || tokens_.SkipOperator("|")) {
    inline_start = false;
    ExprPointer filter = Make(ExprKind::kFilter, tokens_.line());
    ASSIGN_OR_RETURN(filter->name, ParseDottedName());
    filter->builtin = FindFilter(filter->name);
    if (filter->builtin == nullptr && conditional_ == 0) {
      return TemplateError(filter->line, absl::StrCat("no filter named '", filter->name, "'"));
    }
    RETURN_IF_ERROR(Adopt(filter.get(), std::move(value)));
    if (tokens_.IsOperator("(")) RETURN_IF_ERROR(ParseArguments(filter.get()));
    value = std::move(filter);
  }
  return value;
}

ExpressionParser::Result ExpressionParser::ParseTest(ExprPointer node) {
  ExprPointer test = Make(ExprKind::kTest, tokens_.Take().line);
  bool negated = tokens_.SkipName("not");
  ASSIGN_OR_RETURN(test->name, ParseDottedName());
  test->builtin = FindTest(test->name);
  if (test->builtin == nullptr && conditional_ == 0) {
    return TemplateError(test->line, absl::StrCat("no test named '", test->name, "'"));
  }
  RETURN_IF_ERROR(Adopt(test.get(), std::move(node)));
  TokenKind kind = tokens_.current().kind;
  bool word = tokens_.IsName("else") || tokens_.IsName("or") || tokens_.IsName("and");
  if (tokens_.IsOperator("(")) {
    RETURN_IF_ERROR(ParseArguments(test.get()));
  } else if (!word &&
             (kind == TokenKind::kName || kind == TokenKind::kString || kind == TokenKind::kInteger ||
              kind == TokenKind::kFloat || tokens_.IsOperator("[") || tokens_.IsOperator("{"))) {
    if (tokens_.IsName("is")) return TemplateError(tokens_.line(), "tests cannot be chained with is");
    ASSIGN_OR_RETURN(ExprPointer argument, ParsePrimary(false));
    ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
    RETURN_IF_ERROR(Adopt(test.get(), std::move(argument)));
  }
  if (!negated) return test;
  ExprPointer inverse = Make(ExprKind::kNot, test->line);
  RETURN_IF_ERROR(Adopt(inverse.get(), std::move(test)));
  return inverse;
}

absl::StatusOr<std::vector<Parameter>> ExpressionParser::ParseParameters() {
  std::vector<Parameter> parameters;
  RETURN_IF_ERROR(tokens_.ExpectOperator("("));
  while (!tokens_.IsOperator(")")) {
    if (!parameters.empty()) RETURN_IF_ERROR(tokens_.ExpectOperator(","));
    if (!tokens_.Is(TokenKind::kName)) return tokens_.Unexpected("the name of a parameter");
    Parameter parameter;
    parameter.name = tokens_.Take().text;
    if (tokens_.SkipOperator("=")) {
      ASSIGN_OR_RETURN(parameter.fallback, ParseExpression());
    } else if (!parameters.empty() && parameters.back().fallback != nullptr) {
      return TemplateError(tokens_.line(), "a parameter without default behind one with default");
    }
    parameters.push_back(std::move(parameter));
  }
  tokens_.Advance();
  return parameters;
}

}  // namespace millrace::jinja
