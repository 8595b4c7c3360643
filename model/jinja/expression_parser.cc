#include "model/jinja/expression_parser.h"

#include <algorithm>

#include "common/status_macros.h"
#include "model/jinja/builtins.h"
#include "model/jinja/parser.h"
#include "model/jinja/runtime.h"

namespace millrace::jinja {
namespace {

Value ConstantText(std::string bytes) {
  return Value(std::make_shared<const Text>(bytes));
}

}  // namespace

absl::Status ExpressionParser::Enter() {
  if (++depth_ <= kMaxParseDepth) return absl::OkStatus();
  return TemplateError(tokens_.line(), absl::StrCat("nested more than ", kMaxParseDepth, " levels deep"));
}

ExprPointer ExpressionParser::Make(ExprKind kind, int line) const {
  auto node = std::make_unique<Expr>();
  node->kind = kind;
  node->line = line;
  return node;
}

absl::Status ExpressionParser::Adopt(Expr* parent, ExprPointer child) const {
  if (child != nullptr) parent->depth = std::max(parent->depth, child->depth + 1);
  parent->children.push_back(std::move(child));
  return CheckDepth(*parent);
}

absl::Status ExpressionParser::CheckDepth(const Expr& node) const {
  if (node.depth <= kMaxDepth) return absl::OkStatus();
  return TemplateError(node.line, absl::StrCat("an expression more than ", kMaxDepth, " operations deep"));
}

bool ExpressionParser::IsTupleEnd(const TupleRules& rules) const {
  return tokens_.Is(TokenKind::kVariableEnd) || tokens_.Is(TokenKind::kBlockEnd) || tokens_.IsOperator(")") ||
         (!rules.end_name.empty() && tokens_.IsName(rules.end_name));
}

ExpressionParser::Result ExpressionParser::ParseTuple(const TupleRules& rules) {
  ExprPointer tuple = Make(ExprKind::kTuple, tokens_.line());
  bool is_tuple = false;
  while (true) {
    if (!tuple->children.empty()) RETURN_IF_ERROR(tokens_.ExpectOperator(","));
    if (IsTupleEnd(rules)) break;
    Result item = rules.targets_only       ? ParsePrimary(rules.with_namespace)
                  : rules.with_conditional ? ParseExpression()
                                           : ParseOr();
    RETURN_IF_ERROR(item.status());
    RETURN_IF_ERROR(Adopt(tuple.get(), *std::move(item)));
    if (!tokens_.IsOperator(",")) break;
    is_tuple = true;
  }
  if (is_tuple) return tuple;
  if (!tuple->children.empty()) return std::move(tuple->children[0]);
  if (rules.explicit_parentheses) return tuple;
  return tokens_.Unexpected("an expression");
}

ExpressionParser::Result ExpressionParser::ParseTarget(const TupleRules& rules) {
  ASSIGN_OR_RETURN(ExprPointer target, ParseTuple(rules));
  RETURN_IF_ERROR(CheckTarget(*target));
  return target;
}

absl::Status ExpressionParser::CheckTarget(const Expr& target) const {
  if (target.kind == ExprKind::kName || target.kind == ExprKind::kNamespaceRef) return absl::OkStatus();
  if (target.kind != ExprKind::kTuple) return TemplateError(target.line, "this cannot be assigned to");
  for (const ExprPointer& part : target.children) RETURN_IF_ERROR(CheckTarget(*part));
  return absl::OkStatus();
}

ExpressionParser::Result ExpressionParser::ParseExpression() {
  RETURN_IF_ERROR(Enter());
  Result node = ParseConditional();
  Leave();
  return node;
}

ExpressionParser::Result ExpressionParser::ParseConditional() {
  int line = tokens_.line();
  ASSIGN_OR_RETURN(ExprPointer node, ParseOr());
  while (tokens_.SkipName("if")) {
    ExprPointer conditional = Make(ExprKind::kConditional, line);
    ASSIGN_OR_RETURN(ExprPointer condition, ParseOr());
    ExprPointer otherwise;
    if (tokens_.SkipName("else")) {
      ASSIGN_OR_RETURN(otherwise, ParseExpression());
    }
    RETURN_IF_ERROR(Adopt(conditional.get(), std::move(condition)));
    RETURN_IF_ERROR(Adopt(conditional.get(), std::move(node)));
    RETURN_IF_ERROR(Adopt(conditional.get(), std::move(otherwise)));
    node = std::move(conditional);
  }
  return node;
}

ExpressionParser::Result ExpressionParser::ParseOr() {
  ASSIGN_OR_RETURN(ExprPointer left, ParseAnd());
  while (tokens_.IsName("or")) {
    ExprPointer node = Make(ExprKind::kOr, tokens_.Take().line);
    ASSIGN_OR_RETURN(ExprPointer right, ParseAnd());
    RETURN_IF_ERROR(Adopt(node.get(), std::move(left)));
    RETURN_IF_ERROR(Adopt(node.get(), std::move(right)));
    left = std::move(node);
  }
  return left;
}

ExpressionParser::Result ExpressionParser::ParseAnd() {
  ASSIGN_OR_RETURN(ExprPointer left, ParseNot());
  while (tokens_.IsName("and")) {
    ExprPointer node = Make(ExprKind::kAnd, tokens_.Take().line);
    ASSIGN_OR_RETURN(ExprPointer right, ParseNot());
    RETURN_IF_ERROR(Adopt(node.get(), std::move(left)));
    RETURN_IF_ERROR(Adopt(node.get(), std::move(right)));
    left = std::move(node);
  }
  return left;
}

ExpressionParser::Result ExpressionParser::ParseNot() {
  if (!tokens_.IsName("not")) return ParseCompare();
  ExprPointer node = Make(ExprKind::kNot, tokens_.Take().line);
  RETURN_IF_ERROR(Enter());
  Result operand = ParseNot();
  Leave();
  RETURN_IF_ERROR(operand.status());
  RETURN_IF_ERROR(Adopt(node.get(), *std::move(operand)));
  return node;
}

ExpressionParser::Result ExpressionParser::ParseCompare() {
  static const std::vector<std::pair<absl::string_view, Operator>> kOperators = {
      {"==", Operator::kEqual},       {"!=", Operator::kNotEqual}, {"<", Operator::kLess},
      {"<=", Operator::kLessOrEqual}, {">", Operator::kGreater},   {">=", Operator::kGreaterOrEqual}};
  ExprPointer compare = Make(ExprKind::kCompare, tokens_.line());
  ASSIGN_OR_RETURN(ExprPointer first, ParseSum());
  RETURN_IF_ERROR(Adopt(compare.get(), std::move(first)));
  while (true) {
    auto found = std::find_if(kOperators.begin(), kOperators.end(),
                              [this](const auto& row) { return tokens_.IsOperator(row.first); });
    bool not_in =
        tokens_.IsName("not") && tokens_.next().kind == TokenKind::kName && tokens_.next().text == "in";
    if (found == kOperators.end() && !not_in && !tokens_.IsName("in")) break;
    compare->operators.push_back(found != kOperators.end() ? found->second
                                 : not_in                  ? Operator::kNotIn
                                                           : Operator::kIn);
    if (not_in) tokens_.Advance();
    tokens_.Advance();
    ASSIGN_OR_RETURN(ExprPointer next, ParseSum());
    RETURN_IF_ERROR(Adopt(compare.get(), std::move(next)));
  }
  if (compare->operators.empty()) return std::move(compare->children[0]);
  return compare;
}

// operand (operator operand)*, grouped from the left.
ExpressionParser::Result ExpressionParser::ParseBinary(
    Level operand, const std::vector<std::pair<absl::string_view, Operator>>& operators) {
  ASSIGN_OR_RETURN(ExprPointer left, (this->*operand)());
  while (true) {
    auto found = std::find_if(operators.begin(), operators.end(),
                              [this](const auto& row) { return tokens_.IsOperator(row.first); });
    if (found == operators.end()) return left;
    ExprPointer node = Make(ExprKind::kBinary, tokens_.Take().line);
    node->operators.push_back(found->second);
    ASSIGN_OR_RETURN(ExprPointer right, (this->*operand)());
    RETURN_IF_ERROR(Adopt(node.get(), std::move(left)));
    RETURN_IF_ERROR(Adopt(node.get(), std::move(right)));
    left = std::move(node);
  }
}

ExpressionParser::Result ExpressionParser::ParseSum() {
  return ParseBinary(&ExpressionParser::ParseConcat, {{"+", Operator::kAdd}, {"-", Operator::kSubtract}});
}

ExpressionParser::Result ExpressionParser::ParseConcat() {
  ExprPointer concat = Make(ExprKind::kConcat, tokens_.line());
  do {
    ASSIGN_OR_RETURN(ExprPointer part, ParseProduct());
    RETURN_IF_ERROR(Adopt(concat.get(), std::move(part)));
  } while (tokens_.SkipOperator("~"));
  if (concat->children.size() == 1) return std::move(concat->children[0]);
  return concat;
}

ExpressionParser::Result ExpressionParser::ParseProduct() {
  return ParseBinary(&ExpressionParser::ParsePower, {{"*", Operator::kMultiply},
                                                     {"/", Operator::kDivide},
                                                     {"//", Operator::kFloorDivide},
                                                     {"%", Operator::kModulo}});
}

ExpressionParser::Result ExpressionParser::ParsePower() {
  ASSIGN_OR_RETURN(ExprPointer left, ParseUnary(true));
  while (tokens_.IsOperator("**")) {
    ExprPointer node = Make(ExprKind::kBinary, tokens_.Take().line);
    node->operators.push_back(Operator::kPower);
    ASSIGN_OR_RETURN(ExprPointer right, ParseUnary(true));
    RETURN_IF_ERROR(Adopt(node.get(), std::move(left)));
    RETURN_IF_ERROR(Adopt(node.get(), std::move(right)));
    left = std::move(node);
  }
  return left;
}

ExpressionParser::Result ExpressionParser::ParseUnary(bool with_filters) {
  ExprPointer node;
  if (tokens_.IsOperator("-") || tokens_.IsOperator("+")) {
    Token sign = tokens_.Take();
    node = Make(sign.text == "-" ? ExprKind::kNegate : ExprKind::kPlus, sign.line);
    RETURN_IF_ERROR(Enter());
    Result operand = ParseUnary(false);
    Leave();
    RETURN_IF_ERROR(operand.status());
    RETURN_IF_ERROR(Adopt(node.get(), *std::move(operand)));
  } else {
    ASSIGN_OR_RETURN(node, ParsePrimary(false));
  }
  ASSIGN_OR_RETURN(node, ParsePostfix(std::move(node)));
  return with_filters ? ParseFiltersAndTests(std::move(node)) : Result(std::move(node));
}

ExpressionParser::Result ExpressionParser::ParseNameOrConstant(bool with_namespace) {
  Token token = tokens_.Take();
  ExprPointer node = Make(ExprKind::kConstant, token.line);
  if (token.text == "true" || token.text == "True") {
    node->constant = Value(true);
  } else if (token.text == "false" || token.text == "False") {
    node->constant = Value(false);
  } else if (token.text == "none" || token.text == "None") {
    node->constant = Value(None{});
  } else {
    node->kind = ExprKind::kName;
    node->name = token.text;
    if (with_namespace && tokens_.SkipOperator(".")) {
      if (!tokens_.Is(TokenKind::kName)) return tokens_.Unexpected("an attribute name");
      node->kind = ExprKind::kNamespaceRef;
      node->attribute = tokens_.Take().text;
    }
  }
  return node;
}

ExpressionParser::Result ExpressionParser::ParsePrimary(bool with_namespace) {
  if (tokens_.Is(TokenKind::kName)) return ParseNameOrConstant(with_namespace);
  ExprPointer node = Make(ExprKind::kConstant, tokens_.line());
  if (tokens_.Is(TokenKind::kString)) {
    std::string text;
    while (tokens_.Is(TokenKind::kString)) text += tokens_.Take().text;
    node->constant = ConstantText(std::move(text));
    return node;
  }
  if (tokens_.Is(TokenKind::kInteger)) {
    node->constant = Value(tokens_.Take().integer);
    return node;
  }
  if (tokens_.Is(TokenKind::kFloat)) {
    node->constant = Value(tokens_.Take().number);
    return node;
  }
  if (tokens_.SkipOperator("(")) {
    TupleRules rules;
    rules.explicit_parentheses = true;
    ASSIGN_OR_RETURN(node, ParseTuple(rules));
    RETURN_IF_ERROR(tokens_.ExpectOperator(")"));
    return node;
  }
  if (tokens_.IsOperator("[")) return ParseList();
  if (tokens_.IsOperator("{")) return ParseDict();
  return tokens_.Unexpected("an expression");
}

ExpressionParser::Result ExpressionParser::ParseList() {
  ExprPointer list = Make(ExprKind::kList, tokens_.Take().line);
  while (!tokens_.IsOperator("]")) {
    if (!list->children.empty()) RETURN_IF_ERROR(tokens_.ExpectOperator(","));
    if (tokens_.IsOperator("]")) break;
    ASSIGN_OR_RETURN(ExprPointer item, ParseExpression());
    RETURN_IF_ERROR(Adopt(list.get(), std::move(item)));
  }
  tokens_.Advance();
  return list;
}

ExpressionParser::Result ExpressionParser::ParseDict() {
  ExprPointer dict = Make(ExprKind::kDict, tokens_.Take().line);
  while (!tokens_.IsOperator("}")) {
    if (!dict->children.empty()) RETURN_IF_ERROR(tokens_.ExpectOperator(","));
    if (tokens_.IsOperator("}")) break;
    ASSIGN_OR_RETURN(ExprPointer key, ParseExpression());
    RETURN_IF_ERROR(tokens_.ExpectOperator(":"));
    ASSIGN_OR_RETURN(ExprPointer value, ParseExpression());
    RETURN_IF_ERROR(Adopt(dict.get(), std::move(key)));
    RETURN_IF_ERROR(Adopt(dict.get(), std::move(value)));
  }
  tokens_.Advance();
  return dict;
}

}  // namespace millrace::jinja
