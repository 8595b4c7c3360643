#include "common/transport/tls_probe.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/transport/channels.h"
#include "common/transport/local_socket.h"

namespace millrace {
namespace {

constexpr int kConnectMillis = 1000;
constexpr timeval kPatience = {1, 0};
// What gRPC's servers insist on: HTTP/2.
constexpr unsigned char kProtocols[] = {2, 'h', '2'};

struct Free {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  void operator()(SSL* ssl) const { SSL_free(ssl); }
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
template <typename T>
using Owned = std::unique_ptr<T, Free>;

// A connected socket that gives up on reads and writes after kPatience.
class Socket {
 public:
  explicit Socket(const HostPort& peer) {
    addrinfo hints = {};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (getaddrinfo(peer.host.c_str(), absl::StrCat(peer.port).c_str(), &hints, &found) != 0) return;
    for (const addrinfo* it = found; it != nullptr && fd_ < 0; it = it->ai_next) Connect(*it);
    freeaddrinfo(found);
  }
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return fd_; }

 private:
  // The timeout of sending is that of connecting, too.
  void Connect(const addrinfo& address) {
    fd_ = socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const timeval connect_patience = {kConnectMillis / 1000, 0};
    setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &connect_patience, sizeof(connect_patience));
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof(kPatience));
    if (fd_ < 0 || connect(fd_, address.ai_addr, address.ai_addrlen) == 0) return;
    close(fd_);
    fd_ = -1;
  }

  int fd_ = -1;
};

Owned<BIO> Reader(const std::string& pem) {
  return Owned<BIO>(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

int NoPassphrase(char*, int, int, void*) {
  return 0;
}

// What `credentials` show and trust, from their files as they are now. False: these are what is wrong.
bool Equip(SSL_CTX* context, const TlsFiles& files) {
  const Owned<BIO> ca = Reader(files.ca);
  while (X509* certificate = PEM_read_bio_X509(ca.get(), nullptr, nullptr, nullptr)) {
    X509_STORE_add_cert(SSL_CTX_get_cert_store(context), certificate);
    X509_free(certificate);
  }
  ERR_clear_error();
  if (files.identity.empty()) return true;
  const Owned<BIO> key_reader = Reader(files.identity);
  const Owned<EVP_PKEY> key(PEM_read_bio_PrivateKey(key_reader.get(), nullptr, NoPassphrase, nullptr));
  const Owned<BIO> reader = Reader(files.identity);
  bool first = true;
  while (X509* certificate = PEM_read_bio_X509(reader.get(), nullptr, nullptr, nullptr)) {
    if (first) SSL_CTX_use_certificate(context, certificate);
    if (!first) SSL_CTX_add1_chain_cert(context, certificate);
    X509_free(certificate);
    first = false;
  }
  ERR_clear_error();
  return key != nullptr && SSL_CTX_use_PrivateKey(context, key.get()) == 1;
}

std::string NamesOf(X509* certificate) {
  auto* names =
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr));
  std::string text;
  for (int i = 0; i < sk_GENERAL_NAME_num(names); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names, i);
    char ip[INET6_ADDRSTRLEN] = "";
    std::string one;
    if (name->type == GEN_DNS) {
      one.assign(reinterpret_cast<const char*>(ASN1_STRING_get0_data(name->d.dNSName)),
                 static_cast<size_t>(ASN1_STRING_length(name->d.dNSName)));
    } else if (name->type == GEN_IPADD) {
      const int family = ASN1_STRING_length(name->d.iPAddress) == 4 ? AF_INET : AF_INET6;
      const char* shown = inet_ntop(family, ASN1_STRING_get0_data(name->d.iPAddress), ip, sizeof(ip));
      one = shown == nullptr ? "" : shown;
    }
    // From a stranger: nothing that could break a line of the log.
    for (char& c : one) c = c > ' ' && c < 127 ? c : '?';
    if (!one.empty() && text.size() < 200) absl::StrAppend(&text, text.empty() ? "" : ", ", one);
  }
  GENERAL_NAMES_free(names);
  return text.empty() ? "no host" : text;
}

bool IsIpAddress(const std::string& name) {
  in6_addr ip;
  return inet_pton(AF_INET, name.c_str(), &ip) == 1 || inet_pton(AF_INET6, name.c_str(), &ip) == 1;
}

std::string ExplainName(const std::string& address, X509* certificate, const TlsOptions& options) {
  return absl::StrCat("the certificate of ", address, " is for ", NamesOf(certificate),
                      options.name.empty() ? "; connect to that name, or say which to expect with --tls-name"
                                           : absl::StrCat(", not for --tls-name ", options.name));
}

std::string ExplainVerification(const std::string& address, long result, const TlsOptions& options) {
  if (result == X509_V_ERR_CERT_HAS_EXPIRED || result == X509_V_ERR_CERT_NOT_YET_VALID) {
    return absl::StrCat("the certificate of ", address,
                        result == X509_V_ERR_CERT_HAS_EXPIRED ? " has expired" : " is not valid yet",
                        "; replace it there, and see whether both clocks are right");
  }
  return absl::StrCat("the certificate of ", address, " was not signed by --tls-ca ", options.ca, " (",
                      X509_verify_cert_error_string(result), ")");
}

std::string Refused(const std::string& address, const TlsOptions& options) {
  if (options.cert.empty()) {
    return absl::StrCat(address, " asks for a certificate: give --tls-cert and --tls-key");
  }
  return absl::StrCat(address, " does not accept --tls-cert ", options.cert,
                      ": not signed by the CA that it trusts, or without the --tls-name that it expects");
}

// What the peer answered with a TLS alert.
std::string ExplainAlert(const std::string& address, int reason, const TlsOptions& options) {
  switch (reason) {
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
    case SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE:
      if (options.cert.empty()) return Refused(address, options);
      break;
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
      return Refused(address, options);
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
      return absl::StrCat(address, " does not accept --tls-cert ", options.cert, ": it has expired");
    default:
      break;
  }
  const char* text = ERR_reason_error_string(ERR_PACK(ERR_LIB_SSL, 0, reason));
  return absl::StrCat(address, " refuses the TLS handshake: ", text == nullptr ? "no reason given" : text);
}

// Whether the peer answers a TLS greeting as TLS does, whatever comes of it.
bool SpeaksTls(int fd) {
  const Owned<SSL_CTX> context(SSL_CTX_new(TLS_client_method()));
  const Owned<SSL> ssl(SSL_new(context.get()));
  BIO* const to_peer = BIO_new(BIO_s_mem());
  SSL_set_bio(ssl.get(), BIO_new(BIO_s_mem()), to_peer);
  SSL_connect(ssl.get());
  ERR_clear_error();
  char* greeting = nullptr;
  const long size = BIO_get_mem_data(to_peer, &greeting);
  if (send(fd, greeting, static_cast<size_t>(size), MSG_NOSIGNAL) != size) return false;
  unsigned char head[2] = {};
  if (recv(fd, head, sizeof(head), MSG_WAITALL) != static_cast<ssize_t>(sizeof(head))) return false;
  // A record of TLS: handshake or alert, and the major version that all of TLS has.
  return (head[0] == SSL3_RT_HANDSHAKE || head[0] == SSL3_RT_ALERT) && head[1] == SSL3_VERSION_MAJOR;
}

// What the peer holds against our certificate shows only now, and often by no more than the end of the
// connection. `asked`: it wanted one.
std::string ExplainAfterHandshake(SSL* ssl, bool asked, const std::string& address,
                                  const TlsOptions& options) {
  char byte = 0;
  errno = 0;
  const int got = SSL_read(ssl, &byte, 1);
  const bool waits = errno == EAGAIN || errno == EWOULDBLOCK;
  if (got > 0 || waits) return "";
  const unsigned long error = ERR_get_error();
  const int reason = error != 0 && ERR_GET_LIB(error) == ERR_LIB_SSL ? ERR_GET_REASON(error) : 0;
  if (reason != 0 && reason != SSL_R_UNEXPECTED_EOF_WHILE_READING) {
    return ExplainAlert(address, reason, options);
  }
  return asked ? Refused(address, options) : "";
}

std::string ExplainTls(int fd, const std::string& address, const std::string& host,
                       const TlsOptions& options) {
  const absl::StatusOr<TlsFiles> files = ReadTlsFiles(options);
  if (!files.ok()) return std::string(files.status().message());
  const Owned<SSL_CTX> context(SSL_CTX_new(TLS_client_method()));
  if (!Equip(context.get(), *files)) return "";
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  bool asked = false;
  const auto note_that_asked = [](SSL*, void* flag) { return *static_cast<bool*>(flag) = true, 1; };
  SSL_CTX_set_cert_cb(context.get(), note_that_asked, &asked);
  SSL_CTX_set_alpn_protos(context.get(), kProtocols, sizeof(kProtocols));
  const Owned<SSL> ssl(SSL_new(context.get()));
  const std::string& name = options.name.empty() ? host : options.name;
  const bool is_ip = IsIpAddress(name);
  if (!is_ip) SSL_set_tlsext_host_name(ssl.get(), name.c_str());
  SSL_set_fd(ssl.get(), fd);
  ERR_clear_error();
  if (SSL_connect(ssl.get()) == 1) {
    const Owned<X509> certificate(SSL_get1_peer_certificate(ssl.get()));
    const bool carries = is_ip
                             ? X509_check_ip_asc(certificate.get(), name.c_str(), 0) == 1
                             : X509_check_host(certificate.get(), name.c_str(), name.size(), 0, nullptr) == 1;
    if (!carries) return ExplainName(address, certificate.get(), options);
    return ExplainAfterHandshake(ssl.get(), asked, address, options);
  }
  const unsigned long error = ERR_peek_error();
  ERR_clear_error();
  const long verified = SSL_get_verify_result(ssl.get());
  if (verified != X509_V_OK) return ExplainVerification(address, verified, options);
  if (error == 0) return "";
  const int reason = ERR_GET_REASON(error);
  if (reason == SSL_R_WRONG_VERSION_NUMBER || reason == SSL_R_PACKET_LENGTH_TOO_LONG) {
    return absl::StrCat(address,
                        " does not speak TLS: leave out the --tls flags here, or give --tls-cert, "
                        "--tls-key and --tls-ca there");
  }
  return ExplainAlert(address, reason, options);
}

}  // namespace

std::string ExplainFailedConnection(const std::string& address, const SharedCredentials& credentials) {
  if (IsUnixAddress(address)) return "";
  const absl::StatusOr<HostPort> peer = ParseHostPort(address);
  if (!peer.ok()) return "";
  const Socket socket(*peer);
  if (socket.fd() < 0) return "";
  if (credentials != nullptr) return ExplainTls(socket.fd(), address, peer->host, credentials->options());
  return SpeaksTls(socket.fd()) ? absl::StrCat(address,
                                               " speaks TLS: give --tls-ca (and --tls-cert and "
                                               "--tls-key, where it asks for a certificate)")
                                : "";
}

}  // namespace millrace
