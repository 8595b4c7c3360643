#include "common/transport/credentials.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/bounded_queue.h"
#include "common/log.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "grpcpp/security/tls_certificate_provider.h"
#include "grpcpp/security/tls_certificate_verifier.h"
#include "grpcpp/security/tls_credentials_options.h"

namespace millrace {
namespace {

constexpr absl::Duration kLookInterval = absl::Seconds(2);
constexpr unsigned kGrpcLookSeconds = 1;

// What tells that a file is another one, or has been written.
using Stamp = std::tuple<dev_t, ino_t, off_t, int64_t, int64_t>;
Stamp StampOf(const std::string& path) {
  struct stat info = {};
  if (path.empty() || stat(path.c_str(), &info) != 0) return {};
  return {info.st_dev, info.st_ino, info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec};
}

// A file in memory with a path, for a library that reads paths.
class MemoryFile {
 public:
  explicit MemoryFile(const char* name) : fd_(memfd_create(name, MFD_CLOEXEC)) {}
  ~MemoryFile() {
    if (fd_ >= 0) close(fd_);
  }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return absl::StrCat("/proc/self/fd/", fd_); }
  bool Write(const std::string& text) {
    return fd_ >= 0 && ftruncate(fd_, 0) == 0 &&
           pwrite(fd_, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size());
  }

 private:
  const int fd_;
};

// Servers learn names of peers from their certificates only; gRPC's own check is for the name connected to.
class CarriesName final : public grpc::experimental::ExternalCertificateVerifier {
 public:
  explicit CarriesName(std::string name) : name_(std::move(name)) {}
  bool Verify(grpc::experimental::TlsCustomVerificationCheckRequest* request,
              std::function<void(grpc::Status)>, grpc::Status* status) override {
    std::vector<grpc::string_ref> names = request->dns_names();
    for (const grpc::string_ref& ip : request->ip_names()) names.push_back(ip);
    if (std::find(names.begin(), names.end(), name_) == names.end()) {
      LogWarning("TLS: refused a peer whose certificate does not carry --tls-name ", name_, "; its names: ",
                 names.empty() ? "none" : std::string(names.front().data(), names.front().size()),
                 names.size() > 1 ? ", ..." : "");
      *status = grpc::Status(grpc::StatusCode::UNAUTHENTICATED, "the certificate lacks the cluster's name");
    }
    return true;
  }
  void Cancel(grpc::experimental::TlsCustomVerificationCheckRequest*) override {}

 private:
  const std::string name_;
};

}  // namespace

// gRPC reads files again by itself, but takes whatever they hold, one after the other: a key that was
// replaced before its certificate would leave a server without either. So it is given files in memory that
// only checked content enters, key and certificate together.
class Credentials::Source {
 public:
  explicit Source(const TlsOptions& options) : options_(options) {}
  ~Source() {
    stop_.Close();
    if (follower_.joinable()) follower_.join();
  }

  absl::Status Start(bool follow) {
    const std::vector<Stamp> stamps = Stamps();
    ASSIGN_OR_RETURN(const TlsFiles files, ReadTlsFiles(options_));
    RETURN_IF_ERROR(Publish(files));
    using grpc::experimental::FileWatcherCertificateProvider;
    if (options_.cert.empty()) {
      provider_ = std::make_shared<FileWatcherCertificateProvider>(ca_.path(), kGrpcLookSeconds);
    } else {
      provider_ = std::make_shared<FileWatcherCertificateProvider>(identity_.path(), identity_.path(),
                                                                   ca_.path(), kGrpcLookSeconds);
    }
    if (!follow) return absl::OkStatus();
    Tell("", files);
    follower_ = std::thread([this, stamps] {
      NameThread("tls");
      Follow(stamps);
    });
    return absl::OkStatus();
  }

  const TlsOptions& options() const { return options_; }
  const std::shared_ptr<grpc::experimental::CertificateProviderInterface>& provider() const {
    return provider_;
  }

 private:
  std::vector<Stamp> Stamps() const {
    return {StampOf(options_.cert), StampOf(options_.key), StampOf(options_.ca)};
  }

  absl::Status Publish(const TlsFiles& files) {
    expires_ = files.expires;
    if ((files.identity.empty() || identity_.Write(files.identity)) && ca_.Write(files.ca)) {
      return absl::OkStatus();
    }
    return absl::ResourceExhaustedError("TLS: no memory to hold certificates in");
  }

  void Tell(const char* what, const TlsFiles& files) const {
    LogInfo("TLS: ", what, "the certificate is valid until ",
            absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", files.expires, absl::UTCTimeZone()));
    if (files.leads_to_ca) return;
    LogWarning("TLS: no certificate in --tls-ca ", options_.ca, " has signed --tls-cert ", options_.cert,
               ": peers that trust this CA alone will refuse it");
  }

  // Thread: tls. Two publications are more than a second apart, by which gRPC tells that it read key and
  // certificate of the same one.
  void Follow(std::vector<Stamp> stamps) {
    bool said_expired = false;
    while (!stop_.closed()) {
      stop_.Pop(kLookInterval);
      if (expires_ <= absl::Now() && !std::exchange(said_expired, true)) {
        LogError("TLS: --tls-cert ", options_.cert, " has expired: peers refuse it until it is replaced");
      }
      std::vector<Stamp> now = Stamps();
      if (now == stamps || stop_.closed()) continue;
      stamps = std::move(now);
      const absl::StatusOr<TlsFiles> files = ReadTlsFiles(options_);
      const absl::Status status = files.ok() ? Publish(*files) : files.status();
      if (!status.ok()) {
        LogWarning("TLS: files have changed, and what they held before stays in use: ", status.message());
        continue;
      }
      said_expired = false;
      Tell("files have changed; new connections use them; ", *files);
    }
  }

  const TlsOptions options_;
  MemoryFile identity_{"millrace-tls-identity"};
  MemoryFile ca_{"millrace-tls-ca"};
  std::shared_ptr<grpc::experimental::CertificateProviderInterface> provider_;
  absl::Time expires_;  // thread: tls, once it runs
  BoundedQueue<int> stop_{1};
  std::thread follower_;
};

Credentials::Credentials(std::unique_ptr<Source> source) : source_(std::move(source)) {}
Credentials::~Credentials() = default;

absl::StatusOr<std::shared_ptr<const Credentials>> Credentials::Load(const TlsOptions& options, bool follow) {
  if (!options.on()) return nullptr;
  auto source = std::make_unique<Source>(options);
  RETURN_IF_ERROR(source->Start(follow));
  return std::shared_ptr<const Credentials>(new Credentials(std::move(source)));
}

const TlsOptions& Credentials::options() const {
  return source_->options();
}

std::shared_ptr<grpc::ChannelCredentials> Credentials::ForChannel() const {
  grpc::experimental::TlsChannelCredentialsOptions tls;
  tls.set_certificate_provider(source_->provider());
  tls.watch_root_certs();
  if (!options().cert.empty()) tls.watch_identity_key_cert_pairs();
  tls.set_certificate_verifier(std::make_shared<grpc::experimental::HostNameCertificateVerifier>());
  return grpc::experimental::TlsCredentials(tls);
}

std::shared_ptr<grpc::ServerCredentials> Credentials::ForServer(bool ask_for_certificate,
                                                                const std::string& peer_name) const {
  grpc::experimental::TlsServerCredentialsOptions tls(source_->provider());
  tls.watch_identity_key_cert_pairs();
  tls.set_cert_request_type(GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  if (ask_for_certificate) {
    tls.watch_root_certs();
    tls.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  if (!peer_name.empty()) {
    tls.set_certificate_verifier(
        grpc::experimental::ExternalCertificateVerifier::Create<CarriesName>(peer_name));
  }
  return grpc::experimental::TlsServerCredentials(tls);
}

std::shared_ptr<grpc::ServerCredentials> Credentials::ForClients() const {
  return ForServer(options().require_client_certificate, "");
}

std::shared_ptr<grpc::ServerCredentials> Credentials::ForPeers() const {
  return ForServer(true, options().name);
}

std::shared_ptr<grpc::ServerCredentials> ClientPortCredentials(const SharedCredentials& credentials) {
  return credentials == nullptr ? grpc::InsecureServerCredentials() : credentials->ForClients();
}

std::shared_ptr<grpc::ServerCredentials> PeerPortCredentials(const SharedCredentials& credentials) {
  return credentials == nullptr ? grpc::InsecureServerCredentials() : credentials->ForPeers();
}

}  // namespace millrace
