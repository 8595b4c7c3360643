#include "model/chat_template.h"

#include <ctime>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/jinja/interpreter.h"
#include "model/jinja/parser.h"

namespace millrace {
namespace {

std::tm LocalTime(const ChatTemplateOptions& options) {
  if (options.local_time) return *options.local_time;
  std::time_t now = std::time(nullptr);
  std::tm local = {};
  localtime_r(&now, &local);
  return local;
}

absl::StatusOr<jinja::Value> MakeMessages(const std::vector<ChatTurn>& turns, jinja::Runtime* runtime) {
  std::vector<jinja::Value> messages;
  messages.reserve(turns.size());
  for (const ChatTurn& turn : turns) {
    ASSIGN_OR_RETURN(jinja::Dict * message, runtime->MakeDict());
    ASSIGN_OR_RETURN(jinja::Value role_key, runtime->MakeText("role"));
    ASSIGN_OR_RETURN(jinja::Value role, runtime->MakeText(jinja::Text(turn.role, true)));
    RETURN_IF_ERROR(runtime->SetItem(message, std::move(role_key), std::move(role)));
    ASSIGN_OR_RETURN(jinja::Value content_key, runtime->MakeText("content"));
    ASSIGN_OR_RETURN(jinja::Value content, runtime->MakeText(jinja::Text(turn.content, true)));
    RETURN_IF_ERROR(runtime->SetItem(message, std::move(content_key), std::move(content)));
    messages.emplace_back(message);
  }
  return runtime->MakeList(std::move(messages));
}

// The variables transformers passes to a template when it is given messages only.
absl::Status SetGlobals(const std::vector<ChatTurn>& turns, const ChatTemplateOptions& options,
                        jinja::Runtime* runtime, jinja::Scope* globals) {
  auto& variables = globals->variables;
  ASSIGN_OR_RETURN(variables["messages"], MakeMessages(turns, runtime));
  ASSIGN_OR_RETURN(variables["bos_token"], runtime->MakeText(options.bos_text));
  ASSIGN_OR_RETURN(variables["eos_token"], runtime->MakeText(options.eos_text));
  variables["add_generation_prompt"] = jinja::Value(options.add_generation_prompt);
  variables["tools"] = jinja::Value(jinja::None{});
  variables["documents"] = jinja::Value(jinja::None{});
  return absl::OkStatus();
}

}  // namespace

struct ChatTemplate::Impl {
  jinja::Template parsed;
};

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(absl::string_view source) {
  auto impl = std::make_unique<Impl>();
  ASSIGN_OR_RETURN(impl->parsed, jinja::ParseTemplate(source));
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(impl)));
}

absl::StatusOr<RenderedChat> ChatTemplate::Render(const std::vector<ChatTurn>& turns,
                                                  const ChatTemplateOptions& options) const {
  jinja::Runtime runtime(LocalTime(options));
  ASSIGN_OR_RETURN(jinja::Scope * globals, runtime.MakeScope(nullptr));
  RETURN_IF_ERROR(SetGlobals(turns, options, &runtime, globals));
  // A template's own top-level variables live in a scope of their own: a macro or loop sees both alike.
  ASSIGN_OR_RETURN(jinja::Scope * top, runtime.MakeScope(globals));
  ASSIGN_OR_RETURN(jinja::Text text, jinja::Interpreter(&runtime).Run(impl_->parsed, top));
  if (text.size() > kMaxRenderedBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("chat template: ", text.size(),
                                                     " bytes of output, limit ", kMaxRenderedBytes,
                                                     "; send fewer or shorter messages"));
  }
  return RenderedChat{text.bytes(), text.untrusted()};
}

}  // namespace millrace
