#include "tests/unit/transport/test_ca.h"

#include <atomic>

#include "common/check.h"
#include "openssl/bio.h"
#include "openssl/pem.h"
#include "openssl/x509v3.h"

namespace millrace {
namespace {

std::string Content(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  std::string text(data, static_cast<size_t>(size));
  BIO_free(bio);
  return text;
}

std::string PemOf(X509* certificate) {
  BIO* bio = BIO_new(BIO_s_mem());
  MILLRACE_CHECK(PEM_write_bio_X509(bio, certificate) == 1);
  return Content(bio);
}

void AddExtension(X509* certificate, X509* issuer, int id, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, id, value.c_str());
  MILLRACE_CHECK(extension != nullptr);
  X509_add_ext(certificate, extension, -1);
  X509_EXTENSION_free(extension);
}

X509* NewCertificate(EVP_PKEY* key, const std::string& name, absl::Time begin, absl::Time end) {
  static std::atomic<long> serial{1};
  X509* certificate = X509_new();
  X509_set_version(certificate, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), serial++);
  ASN1_TIME_set(X509_getm_notBefore(certificate), absl::ToTimeT(begin));
  ASN1_TIME_set(X509_getm_notAfter(certificate), absl::ToTimeT(end));
  X509_set_pubkey(certificate, key);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  return certificate;
}

}  // namespace

TestCa::TestCa(const std::string& name, absl::Duration life) : key_(EVP_EC_gen("P-256")) {
  certificate_.reset(NewCertificate(key_.get(), name, absl::Now() - absl::Hours(2), absl::Now() + life));
  X509* it = certificate_.get();
  X509_set_issuer_name(it, X509_get_subject_name(it));
  AddExtension(it, it, NID_basic_constraints, "critical,CA:TRUE");
  MILLRACE_CHECK(X509_sign(it, key_.get(), EVP_sha256()) > 0);
}

std::string TestCa::pem() const {
  return PemOf(certificate_.get());
}

PemPair TestCa::Issue(const std::string& names, absl::Time begin, absl::Time end) const {
  const std::unique_ptr<EVP_PKEY, Free> key(EVP_EC_gen("P-256"));
  const std::unique_ptr<X509, Free> certificate(NewCertificate(key.get(), "node", begin, end));
  X509_set_issuer_name(certificate.get(), X509_get_subject_name(certificate_.get()));
  AddExtension(certificate.get(), certificate_.get(), NID_subject_alt_name, names);
  MILLRACE_CHECK(X509_sign(certificate.get(), key_.get(), EVP_sha256()) > 0);
  BIO* bio = BIO_new(BIO_s_mem());
  MILLRACE_CHECK(PEM_write_bio_PrivateKey(bio, key.get(), nullptr, nullptr, 0, nullptr, nullptr) == 1);
  return {PemOf(certificate.get()), Content(bio)};
}

}  // namespace millrace
