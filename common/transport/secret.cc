#include "common/transport/secret.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace millrace {
namespace {
constexpr size_t kMaxSecret = 256;
}  // namespace

bool SecretsEqual(absl::string_view a, absl::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

std::string MakeSecret() {
  std::random_device source;
  std::string secret;
  for (int i = 0; i < 4; ++i) absl::StrAppendFormat(&secret, "%08x", static_cast<uint32_t>(source()));
  return secret;
}

absl::StatusOr<std::string> ReadSecretFile(const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream file(path);
  std::string line;
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  if (!std::getline(file, line) || line.empty() || line.size() > kMaxSecret ||
      !std::all_of(line.begin(), line.end(), [](char c) { return c > ' ' && c < 127; })) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": a join secret is one line of 1 to ", kMaxSecret, " printable characters"));
  }
  return line;
}

absl::Status WriteSecretFile(const std::string& path, absl::string_view secret) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return absl::PermissionDeniedError(absl::StrCat(path, ": ", strerror(errno)));
  const std::string line = absl::StrCat(secret, "\n");
  const bool written =
      fchmod(fd, 0600) == 0 && write(fd, line.data(), line.size()) == static_cast<ssize_t>(line.size());
  close(fd);
  return written ? absl::OkStatus() : absl::InternalError(absl::StrCat(path, ": cannot be written"));
}

}  // namespace millrace
