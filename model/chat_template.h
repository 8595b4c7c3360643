// The chat template of a model file: a Jinja program run by a small interpreter of ours, limited in steps and
// size.
#pragma once

#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer.h"

namespace millrace {

struct ChatTurn {
  std::string role;
  std::string content;
};

struct ChatTemplateOptions {
  std::string bos_text;
  std::string eos_text;
  bool add_generation_prompt = true;
  std::optional<std::tm>
      local_time;  // what templates that print the date see; absent: the clock and zone of the system
};

struct RenderedChat {
  std::string text;
  // Where `text` came from ChatTurn fields rather than from the template: control tokens are not recognised
  // there.
  std::vector<TextRange> literal_ranges;  // sorted, disjoint
};

// Immutable after Parse. Thread: any.
class ChatTemplate {
 public:
  // INVALID_ARGUMENT: syntax error or unsupported construct, with its line.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(absl::string_view source);
  ~ChatTemplate();

  // INVALID_ARGUMENT: the template raised an exception (its own message) or failed, with the line.
  // RESOURCE_EXHAUSTED: too many steps, or output past `kMaxRenderedBytes`.
  absl::StatusOr<RenderedChat> Render(const std::vector<ChatTurn>& turns,
                                      const ChatTemplateOptions& options) const;

  static constexpr size_t kMaxRenderedBytes = 8 << 20;

 private:
  struct Impl;
  explicit ChatTemplate(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
