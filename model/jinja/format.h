// Python's two ways to fill values into a string.
#pragma once

#include "absl/status/statusor.h"
#include "model/jinja/builtins.h"
#include "model/jinja/runtime.h"

namespace millrace::jinja {

// format % values: %s %r %d %i %f %x %% with flags, width and precision; values is a tuple or a single value.
absl::StatusOr<Text> FormatPercent(Runtime& runtime, const Text& format, const Value& values);

// format.format(...): {} {0} {name} with [[fill]align][0][width][.precision][d|f|s]; no attribute or item
// access.
absl::StatusOr<Text> FormatBraces(Runtime& runtime, const Text& format, const Arguments& arguments);

}  // namespace millrace::jinja
