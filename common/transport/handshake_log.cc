// gRPC tells of failed handshakes in its log alone, in OpenSSL's words and once for each attempt.
#include <cstring>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/transport/credentials.h"
#include "grpc/support/log.h"

namespace millrace {
namespace {

constexpr char kFailed[] = "Handshake failed with fatal error";
constexpr char kOtherName[] = "No match found for server name";
constexpr absl::Duration kQuiet = absl::Seconds(10);

struct Meaning {
  const char* theirs;
  const char* ours;
};
// The last one is for what none of the others fits.
constexpr Meaning kMeanings[] = {
    {"wrong version number",
     "a peer without TLS came to a port that speaks TLS: give it the --tls flags, or leave them out here"},
    {"http request",
     "a peer without TLS came to a port that speaks TLS: give it the --tls flags, or leave them out here"},
    {"did not return a certificate",
     "a peer without a certificate was refused: give it --tls-cert and --tls-key"},
    {"certificate verify failed", "a peer's certificate was refused: expired, or not signed by --tls-ca"},
    {"certificate required", "a peer asks for a certificate: give --tls-cert and --tls-key"},
    {"alert unknown ca",
     "a peer refused the certificate of this process: not signed by the CA that it trusts"},
    {"alert bad certificate", "a peer refused the certificate of this process"},
    {"alert certificate expired", "a peer refused the certificate of this process: it has expired"},
    {"", "a handshake failed"},
};

struct Kinds {
  Mutex mutex;
  absl::Time last[std::size(kMeanings)] ABSL_GUARDED_BY(mutex);
  HandshakeLog log ABSL_GUARDED_BY(mutex) = HandshakeLog::kExplained;
};
// Never destroyed: gRPC's threads may log until the process ends.
Kinds& TheKinds() {
  static Kinds* const kinds = new Kinds();
  return *kinds;
}

void LogHandshake(absl::string_view message) {
  size_t kind = 0;
  while (!absl::StrContains(message, kMeanings[kind].theirs)) ++kind;
  Kinds& kinds = TheKinds();
  {
    const absl::Time now = Clock::Steady().Now();
    MutexLock lock(&kinds.mutex);
    absl::Time& last = kinds.last[kind];
    if (kinds.log == HandshakeLog::kSilent || (last != absl::Time() && now - last < kQuiet)) return;
    last = now;
  }
  const bool known = *kMeanings[kind].theirs != '\0';
  LogWarning("TLS: ", kMeanings[kind].ours, known ? "" : absl::StrCat(": ", message));
}

void OnGrpcLog(gpr_log_func_args* args) {
  const absl::string_view message(args->message);
  if (absl::StartsWith(message, kFailed)) return LogHandshake(message);
  // A client that checks for another name than a certificate carries; the handshake goes on.
  if (absl::StartsWith(message, kOtherName)) return;
  if (args->severity == GPR_LOG_SEVERITY_ERROR) LogError("gRPC: ", message);
}

}  // namespace

void SetHandshakeLog(HandshakeLog kind) {
  {
    MutexLock lock(&TheKinds().mutex);
    TheKinds().log = kind;
  }
  gpr_set_log_function(OnGrpcLog);
}

}  // namespace millrace
