// The join secret: what a process must know to take part in a cluster.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace {

// Takes the same time whether and wherever they differ.
bool SecretsEqual(absl::string_view a, absl::string_view b);

// 128 random bits in hex.
std::string MakeSecret();

// The first line of a file. An empty path gives an empty secret. NOT_FOUND, INVALID_ARGUMENT: empty, or not 1
// to 256 printable characters.
absl::StatusOr<std::string> ReadSecretFile(const std::string& path);

// Creates the file with mode 0600.
absl::Status WriteSecretFile(const std::string& path, absl::string_view secret);

}  // namespace millrace
