#include "common/transport/tls_files.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"

namespace millrace {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 20;

struct Free {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  void operator()(X509_STORE* store) const { X509_STORE_free(store); }
  void operator()(X509_STORE_CTX* context) const { X509_STORE_CTX_free(context); }
};
template <typename T>
using Owned = std::unique_ptr<T, Free>;
using Certificates = std::vector<Owned<X509>>;

absl::StatusOr<std::string> ReadFile(const std::string& flag, const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return absl::InvalidArgumentError(absl::StrCat(flag, " ", path, ": cannot be read: ", strerror(errno)));
  }
  std::string text(kMaxFileBytes + 1, '\0');
  size_t size = 0;
  ssize_t got = 0;
  while (size < text.size() && (got = read(fd, text.data() + size, text.size() - size)) > 0) {
    size += static_cast<size_t>(got);
  }
  const int error = got < 0 ? errno : 0;
  close(fd);
  if (error != 0) {
    return absl::InvalidArgumentError(absl::StrCat(flag, " ", path, ": cannot be read: ", strerror(error)));
  }
  if (size > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(flag, " ", path, ": larger than 1MiB: not a PEM file"));
  }
  text.resize(size);
  return text;
}

Owned<BIO> Reader(const std::string& pem) {
  return Owned<BIO>(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

// All that `pem` holds, up to the first that cannot be read.
Certificates ReadCertificates(const std::string& pem) {
  const Owned<BIO> reader = Reader(pem);
  Certificates result;
  while (X509* certificate = PEM_read_bio_X509(reader.get(), nullptr, nullptr, nullptr)) {
    result.emplace_back(certificate);
  }
  ERR_clear_error();
  return result;
}

// Instead of the terminal, where OpenSSL would ask for one.
int NoPassphrase(char*, int, int, void*) {
  return 0;
}

Owned<EVP_PKEY> ReadKey(const std::string& pem) {
  const Owned<BIO> reader = Reader(pem);
  Owned<EVP_PKEY> key(PEM_read_bio_PrivateKey(reader.get(), nullptr, NoPassphrase, nullptr));
  ERR_clear_error();
  return key;
}

absl::Time TimeOf(const ASN1_TIME* time) {
  tm parts = {};
  if (ASN1_TIME_to_tm(time, &parts) != 1) return absl::InfinitePast();
  return absl::FromTM(parts, absl::UTCTimeZone());
}

std::string Show(absl::Time time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", time, absl::UTCTimeZone());
}

// Whether the first certificate leads to one of the CA's, by way of the others.
bool LeadsTo(const Certificates& chain, const Certificates& ca) {
  const Owned<X509_STORE> store(X509_STORE_new());
  for (const Owned<X509>& certificate : ca) X509_STORE_add_cert(store.get(), certificate.get());
  STACK_OF(X509)* others = sk_X509_new_null();
  for (size_t i = 1; i < chain.size(); ++i) sk_X509_push(others, chain[i].get());
  const Owned<X509_STORE_CTX> context(X509_STORE_CTX_new());
  X509_STORE_CTX_init(context.get(), store.get(), chain.front().get(), others);
  const bool leads = X509_verify_cert(context.get()) == 1;
  sk_X509_free(others);
  ERR_clear_error();
  return leads;
}

absl::Status CheckCa(const std::string& path, const Certificates& ca) {
  const std::string file = absl::StrCat("--tls-ca ", path);
  if (ca.empty()) return absl::InvalidArgumentError(absl::StrCat(file, ": holds no PEM certificate"));
  absl::Time last = absl::InfinitePast();
  for (const Owned<X509>& certificate : ca) {
    last = std::max(last, TimeOf(X509_get0_notAfter(certificate.get())));
  }
  if (last > absl::Now()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(file, ": the certificate expired on ", Show(last), "; give a newer one"));
}

absl::Status CheckIdentity(const TlsOptions& options, const Certificates& chain, const std::string& key_pem) {
  const std::string file = absl::StrCat("--tls-cert ", options.cert);
  if (chain.empty()) return absl::InvalidArgumentError(absl::StrCat(file, ": holds no PEM certificate"));
  const Owned<EVP_PKEY> key = ReadKey(key_pem);
  if (key == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tls-key ", options.key, ": holds no PEM private key, or one with a passphrase"));
  }
  if (X509_check_private_key(chain.front().get(), key.get()) != 1) {
    ERR_clear_error();
    return absl::InvalidArgumentError(absl::StrCat(
        "--tls-key ", options.key, ": does not match the certificate in --tls-cert ", options.cert));
  }
  const absl::Time begin = TimeOf(X509_get0_notBefore(chain.front().get()));
  const absl::Time end = TimeOf(X509_get0_notAfter(chain.front().get()));
  if (end <= absl::Now()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": the certificate expired on ", Show(end), "; give a newer one"));
  }
  if (begin > absl::Now()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": the certificate is not valid before ", Show(begin), "; is the clock right?"));
  }
  return absl::OkStatus();
}

}  // namespace

void TlsFlags::DeclareName(OptionSet& set) {
  set.AddString("tls-name", &options_.name, "NAME",
                "the name that peers' certificates must carry; default: the host connected to");
}

void TlsFlags::DeclareServer(OptionSet& set, bool with_clients) {
  server_ = true;
  set.AddString("tls-cert", &options_.cert, "FILE",
                "PEM: this process's certificate; with --tls-key and --tls-ca it speaks TLS; files are read "
                "again when they change");
  set.AddString("tls-key", &options_.key, "FILE", "PEM: the private key of --tls-cert");
  set.AddString("tls-ca", &options_.ca, "FILE",
                "PEM: who must have signed the certificates of the cluster's processes");
  DeclareName(set);
  if (!with_clients) return;
  set.AddString("tls-clients", &clients_, "any|require",
                "require: clients must show a certificate that --tls-ca has signed");
}

void TlsFlags::DeclareClient(OptionSet& set) {
  set.AddString("tls-ca", &options_.ca, "FILE",
                "PEM: speak TLS, with a server whose certificate this CA has signed");
  set.AddString("tls-cert", &options_.cert, "FILE", "PEM: a certificate, where the server asks for one");
  set.AddString("tls-key", &options_.key, "FILE", "PEM: the private key of --tls-cert");
  DeclareName(set);
}

absl::StatusOr<TlsOptions> TlsFlags::Finish() const {
  const std::pair<const char*, bool> files[] = {{"--tls-cert", !options_.cert.empty()},
                                                {"--tls-key", !options_.key.empty()},
                                                {"--tls-ca", !options_.ca.empty()}};
  std::vector<std::string> given, missing;
  for (const auto& [flag, is_given] : files) (is_given ? given : missing).push_back(flag);
  const bool only_ca = given.size() == 1 && !options_.ca.empty();
  if (!given.empty() && !missing.empty() && (server_ || !only_ca)) {
    return absl::InvalidArgumentError(absl::StrCat(absl::StrJoin(given, " and "), " without ",
                                                   absl::StrJoin(missing, " and "),
                                                   ": TLS takes all three files"));
  }
  if (clients_ != "any" && clients_ != "require") {
    return absl::InvalidArgumentError(absl::StrCat("--tls-clients: '", clients_, "' is not any or require"));
  }
  for (const auto& [flag, is_given] :
       {std::pair{"--tls-name", !options_.name.empty()}, {"--tls-clients require", clients_ == "require"}}) {
    if (is_given && given.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(flag, server_ ? " without --tls-cert, --tls-key and --tls-ca" : " without --tls-ca",
                       ": there is no TLS"));
    }
  }
  TlsOptions result = options_;
  result.require_client_certificate = clients_ == "require";
  return result;
}

absl::StatusOr<TlsFiles> ReadTlsFiles(const TlsOptions& options) {
  TlsFiles files;
  ASSIGN_OR_RETURN(files.ca, ReadFile("--tls-ca", options.ca));
  const Certificates ca = ReadCertificates(files.ca);
  RETURN_IF_ERROR(CheckCa(options.ca, ca));
  if (options.cert.empty()) return files;
  ASSIGN_OR_RETURN(const std::string cert, ReadFile("--tls-cert", options.cert));
  ASSIGN_OR_RETURN(const std::string key, ReadFile("--tls-key", options.key));
  const Certificates chain = ReadCertificates(cert);
  RETURN_IF_ERROR(CheckIdentity(options, chain, key));
  files.identity = absl::StrCat(key, "\n", cert);
  files.expires = TimeOf(X509_get0_notAfter(chain.front().get()));
  files.leads_to_ca = LeadsTo(chain, ca);
  return files;
}

}  // namespace millrace
