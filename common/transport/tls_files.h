// What a process shows and trusts under TLS: the flags that name the files, and what is in them.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/options.h"

namespace millrace {

// Paths of PEM files. Without a CA there is no TLS.
struct TlsOptions {
  std::string cert;  // the certificate, and those that lead from it to the CA
  std::string key;   // its private key, without a passphrase
  std::string ca;    // certificates that peers' must lead to
  std::string name;  // that peers' certificates must carry; empty: the host connected to
  bool require_client_certificate = false;  // on the clients' port
  bool on() const { return !ca.empty(); }
};

// The flags of TLS: --tls-ca and so on.
class TlsFlags {
 public:
  // For a program that serves: all of --tls-cert, --tls-key and --tls-ca, or none. `with_clients`: it has a
  // clients' port.
  void DeclareServer(OptionSet& set, bool with_clients);
  // For a client: --tls-ca, and a certificate with its key where the server asks for one.
  void DeclareClient(OptionSet& set);

  // INVALID_ARGUMENT: flags that do not go together, and what is missing. Reads no file.
  absl::StatusOr<TlsOptions> Finish() const;

 private:
  void DeclareName(OptionSet& set);

  TlsOptions options_;
  std::string clients_ = "any";
  bool server_ = false;
};

// The content of the files, checked.
struct TlsFiles {
  std::string identity;                         // PEM of key and certificates; empty: shows none
  std::string ca;                               // PEM
  absl::Time expires = absl::InfiniteFuture();  // of the own certificate
  bool leads_to_ca = true;                      // the own certificate is one that peers of this CA accept
};

// INVALID_ARGUMENT: one line that names flag and file: cannot be read, not PEM, the key is of another
// certificate, expired or not valid yet. REQUIRES: options.on().
absl::StatusOr<TlsFiles> ReadTlsFiles(const TlsOptions& options);

}  // namespace millrace
