// Builds the tree of a template.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/jinja/ast.h"

namespace millrace::jinja {

inline constexpr int kMaxParseDepth =
    100;  // nested tags and brackets; every bracket costs a dozen stack frames

// INVALID_ARGUMENT with the line: a syntax error, or a tag, filter or test that does not exist here.
absl::StatusOr<Template> ParseTemplate(absl::string_view source);

}  // namespace millrace::jinja
