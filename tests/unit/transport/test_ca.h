// Certificates for tests, made in memory.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "openssl/evp.h"
#include "openssl/x509.h"

namespace millrace {

struct PemPair {
  std::string cert;
  std::string key;
};

class TestCa {
 public:
  explicit TestCa(const std::string& name = "test CA", absl::Duration life = absl::Hours(1));

  std::string pem() const;
  // `names`: as OpenSSL writes them, such as "IP:127.0.0.1,DNS:node".
  PemPair Issue(const std::string& names, absl::Time begin = absl::Now() - absl::Hours(1),
                absl::Time end = absl::Now() + absl::Hours(1)) const;

 private:
  struct Free {
    void operator()(X509* certificate) const { X509_free(certificate); }
    void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  };
  std::unique_ptr<EVP_PKEY, Free> key_;
  std::unique_ptr<X509, Free> certificate_;
};

}  // namespace millrace
