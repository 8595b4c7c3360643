// Python's escapes in the string literals of a template.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace::jinja {

// `body`: what stands between the quotes. INVALID_ARGUMENT (no line): a cut-off or impossible escape.
absl::StatusOr<std::string> UnescapeLiteral(absl::string_view body);

}  // namespace millrace::jinja
