#include "common/transport/local_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/process.h"
#include "common/transport/secret.h"

namespace millrace {
namespace {

constexpr char kScheme[] = "unix-abstract:";
constexpr char kPrefix[] = "millrace-";
constexpr size_t kMaxAddress = 80;

bool CanBind(const std::string& name) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (name.size() + 1 > sizeof(address.sun_path)) return false;
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  const bool bound = bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0;
  close(fd);
  return bound;
}

}  // namespace

std::string HostIdentity() {
  const std::string boot = MachineIdentity();
  struct stat network = {};
  if (boot.empty() || stat("/proc/self/ns/net", &network) != 0) return "";
  return absl::StrCat(boot, "/", network.st_ino);
}

std::string MakeUnixAddress() {
  const std::string name = absl::StrCat(kPrefix, MakeSecret());
  return CanBind(name) ? absl::StrCat(kScheme, name) : "";
}

bool IsUnixAddress(const std::string& address) {
  const std::string start = absl::StrCat(kScheme, kPrefix);
  return absl::StartsWith(address, start) && address.size() > start.size() && address.size() <= kMaxAddress &&
         std::all_of(address.begin() + static_cast<std::ptrdiff_t>(start.size()), address.end(),
                     absl::ascii_isxdigit);
}

}  // namespace millrace
