#include "model/jinja/parser.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "model/jinja/expression_parser.h"

namespace millrace::jinja {
namespace {

using EndNames = std::vector<absl::string_view>;

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)), expressions_(&tokens_) {}

  absl::StatusOr<Template> Run() {
    Template result;
    ASSIGN_OR_RETURN(result.body, ParseBody({}));
    return result;
  }

 private:
  using Body = absl::StatusOr<std::vector<Stmt>>;
  using Result = absl::StatusOr<Stmt>;

  // Until a tag that is one of `ends`, whose name becomes the current token; none: to the end of the
  // template.
  Body ParseBody(const EndNames& ends);
  Body ParseBodyItems(const EndNames& ends);
  // The rest of a tag, then a body; `take_end` also takes the name of the tag that ends it.
  Body ParseBlock(const EndNames& ends, bool take_end);
  absl::Status ParseOutput(std::vector<Stmt>* body);
  Result ParseStatement();
  Result ParseFor(Stmt stmt);
  Result ParseIf(Stmt stmt);
  Result ParseSet(Stmt stmt);
  Result ParseMacro(Stmt stmt);
  Result ParseCallBlock(Stmt stmt);
  Result ParseWith(Stmt stmt);
  Result ParseFilterBlock(Stmt stmt);
  Result ParseGeneration(Stmt stmt);
  Result ParseLoopControl(Stmt stmt);

  TokenStream tokens_;
  ExpressionParser expressions_;
  int loop_depth_ = 0;
};

Parser::Body Parser::ParseBody(const EndNames& ends) {
  RETURN_IF_ERROR(expressions_.Enter());
  Body body = ParseBodyItems(ends);
  expressions_.Leave();
  return body;
}

Parser::Body Parser::ParseBodyItems(const EndNames& ends) {
  std::vector<Stmt> body;
  while (!tokens_.Is(TokenKind::kEnd)) {
    if (tokens_.Is(TokenKind::kData)) {
      Token data = tokens_.Take();
      Stmt stmt = {StmtKind::kText, data.line};
      stmt.text = Value(std::make_shared<const Text>(data.text));
      body.push_back(std::move(stmt));
    } else if (tokens_.Is(TokenKind::kVariableBegin)) {
      RETURN_IF_ERROR(ParseOutput(&body));
    } else {
      tokens_.Advance();
      for (absl::string_view end : ends) {
        if (tokens_.IsName(end)) return body;
      }
      ASSIGN_OR_RETURN(Stmt stmt, ParseStatement());
      RETURN_IF_ERROR(tokens_.Expect(TokenKind::kBlockEnd));
      body.push_back(std::move(stmt));
    }
  }
  if (ends.empty()) return body;
  return TemplateError(tokens_.line(),
                       absl::StrCat("the template ends before ", absl::StrJoin(ends, " or ")));
}

Parser::Body Parser::ParseBlock(const EndNames& ends, bool take_end) {
  tokens_.SkipOperator(":");
  RETURN_IF_ERROR(tokens_.Expect(TokenKind::kBlockEnd));
  ASSIGN_OR_RETURN(std::vector<Stmt> body, ParseBody(ends));
  if (take_end) tokens_.Advance();
  return body;
}

absl::Status Parser::ParseOutput(std::vector<Stmt>* body) {
  Stmt stmt = {StmtKind::kOutput, tokens_.Take().line};
  ASSIGN_OR_RETURN(stmt.expr, expressions_.ParseTuple({}));
  body->push_back(std::move(stmt));
  return tokens_.Expect(TokenKind::kVariableEnd);
}

Parser::Result Parser::ParseStatement() {
  using Handler = Result (Parser::*)(Stmt);
  struct Row {
    absl::string_view name;
    StmtKind kind;
    Handler handler;
  };
  static constexpr Row kRows[] = {
      {"if", StmtKind::kIf, &Parser::ParseIf},
      {"for", StmtKind::kFor, &Parser::ParseFor},
      {"set", StmtKind::kSet, &Parser::ParseSet},
      {"macro", StmtKind::kMacro, &Parser::ParseMacro},
      {"call", StmtKind::kCallBlock, &Parser::ParseCallBlock},
      {"filter", StmtKind::kFilterBlock, &Parser::ParseFilterBlock},
      {"with", StmtKind::kWith, &Parser::ParseWith},
      {"generation", StmtKind::kScope, &Parser::ParseGeneration},
      {"break", StmtKind::kBreak, &Parser::ParseLoopControl},
      {"continue", StmtKind::kContinue, &Parser::ParseLoopControl},
  };
  for (const Row& row : kRows) {
    if (!tokens_.IsName(row.name)) continue;
    Stmt stmt = {row.kind, tokens_.Take().line};
    return (this->*row.handler)(std::move(stmt));
  }
  return TemplateError(tokens_.line(),
                       absl::StrCat("unknown or unsupported tag ", TokenStream::Describe(tokens_.current())));
}

Parser::Result Parser::ParseFor(Stmt stmt) {
  TupleRules target_rules;
  target_rules.targets_only = true;
  target_rules.end_name = "in";
  ASSIGN_OR_RETURN(stmt.target, expressions_.ParseTarget(target_rules));
  RETURN_IF_ERROR(tokens_.ExpectName("in"));
  TupleRules rules;
  rules.with_conditional = false;
  rules.end_name = "recursive";
  ASSIGN_OR_RETURN(stmt.expr, expressions_.ParseTuple(rules));
  if (tokens_.SkipName("if")) {
    ASSIGN_OR_RETURN(stmt.filter, expressions_.ParseExpression());
  }
  if (tokens_.IsName("recursive")) return TemplateError(tokens_.line(), "recursive loops are not supported");
  ++loop_depth_;
  ASSIGN_OR_RETURN(stmt.body, ParseBlock({"endfor", "else"}, false));
  --loop_depth_;
  if (tokens_.Take().text == "else") {
    ASSIGN_OR_RETURN(stmt.otherwise, ParseBlock({"endfor"}, true));
  }
  return stmt;
}

Parser::Result Parser::ParseIf(Stmt stmt) {
  TupleRules rules;
  rules.with_conditional = false;
  std::string end;
  do {
    Branch branch;
    if (end != "else") {
      ASSIGN_OR_RETURN(branch.condition, expressions_.ParseTuple(rules));
    }
    expressions_.set_conditional(+1);
    ASSIGN_OR_RETURN(
        branch.body,
        ParseBlock(end == "else" ? EndNames{"endif"} : EndNames{"elif", "else", "endif"}, false));
    expressions_.set_conditional(-1);
    end = tokens_.Take().text;
    stmt.branches.push_back(std::move(branch));
  } while (end != "endif");
  return stmt;
}

Parser::Result Parser::ParseSet(Stmt stmt) {
  TupleRules target_rules;
  target_rules.targets_only = true;
  target_rules.with_namespace = true;
  ASSIGN_OR_RETURN(stmt.target, expressions_.ParseTarget(target_rules));
  if (tokens_.SkipOperator("=")) {
    ASSIGN_OR_RETURN(stmt.expr, expressions_.ParseTuple({}));
    return stmt;
  }
  stmt.kind = StmtKind::kSetBlock;
  ASSIGN_OR_RETURN(stmt.expr, expressions_.ParseFilters(nullptr, false));
  ASSIGN_OR_RETURN(stmt.body, ParseBlock({"endset"}, true));
  return stmt;
}

Parser::Result Parser::ParseMacro(Stmt stmt) {
  if (!tokens_.Is(TokenKind::kName)) return tokens_.Unexpected("the name of a macro");
  stmt.name = tokens_.Take().text;
  ASSIGN_OR_RETURN(stmt.parameters, expressions_.ParseParameters());
  int loops = std::exchange(loop_depth_, 0);
  ASSIGN_OR_RETURN(stmt.body, ParseBlock({"endmacro"}, true));
  loop_depth_ = loops;
  return stmt;
}

Parser::Result Parser::ParseCallBlock(Stmt stmt) {
  stmt.name = "caller";
  if (tokens_.IsOperator("(")) {
    ASSIGN_OR_RETURN(stmt.parameters, expressions_.ParseParameters());
  }
  ASSIGN_OR_RETURN(stmt.expr, expressions_.ParseExpression());
  if (stmt.expr->kind != ExprKind::kCall) return TemplateError(stmt.line, "expected a call");
  int loops = std::exchange(loop_depth_, 0);
  ASSIGN_OR_RETURN(stmt.body, ParseBlock({"endcall"}, true));
  loop_depth_ = loops;
  return stmt;
}

Parser::Result Parser::ParseWith(Stmt stmt) {
  TupleRules rules;
  rules.targets_only = true;
  while (!tokens_.Is(TokenKind::kBlockEnd)) {
    if (!stmt.assignments.empty()) RETURN_IF_ERROR(tokens_.ExpectOperator(","));
    // A list of names would take the comma: one name each.
    if (!tokens_.Is(TokenKind::kName)) return tokens_.Unexpected("a name");
    auto target = std::make_unique<Expr>();
    target->kind = ExprKind::kName;
    target->line = tokens_.line();
    target->name = tokens_.Take().text;
    RETURN_IF_ERROR(tokens_.ExpectOperator("="));
    ASSIGN_OR_RETURN(ExprPointer value, expressions_.ParseExpression());
    stmt.assignments.emplace_back(std::move(target), std::move(value));
  }
  ASSIGN_OR_RETURN(stmt.body, ParseBlock({"endwith"}, true));
  return stmt;
}

Parser::Result Parser::ParseFilterBlock(Stmt stmt) {
  ASSIGN_OR_RETURN(stmt.expr, expressions_.ParseFilters(nullptr, true));
  ASSIGN_OR_RETURN(stmt.body, ParseBlock({"endfilter"}, true));
  return stmt;
}

Parser::Result Parser::ParseGeneration(Stmt stmt) {
  ASSIGN_OR_RETURN(stmt.body, ParseBlock({"endgeneration"}, true));
  return stmt;
}

Parser::Result Parser::ParseLoopControl(Stmt stmt) {
  if (loop_depth_ == 0) return TemplateError(stmt.line, "break or continue outside of a loop");
  return stmt;
}

}  // namespace

absl::StatusOr<Template> ParseTemplate(absl::string_view source) {
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace millrace::jinja
