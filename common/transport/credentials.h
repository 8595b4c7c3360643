// How every server and channel of the project is secured: TLS from files that may change, or plain text.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/transport/tls_files.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"

namespace millrace {

// Outlives the servers and channels that it is used for. Thread: any. A null pointer to one stands for plain
// text wherever one is taken.
class Credentials {
 public:
  // Null without TLS. `follow`: looks every two seconds whether the files have changed, and takes what they
  // then hold for new connections; what is wrong is not taken, but logged. Errors as ReadTlsFiles.
  static absl::StatusOr<std::shared_ptr<const Credentials>> Load(const TlsOptions& options, bool follow);
  ~Credentials();
  Credentials(const Credentials&) = delete;
  Credentials& operator=(const Credentials&) = delete;

  const TlsOptions& options() const;

  // Towards a server: its certificate must lead to the CA and carry the name.
  std::shared_ptr<grpc::ChannelCredentials> ForChannel() const;
  // The clients' port: whoever comes, or whoever shows a certificate of the CA, as the options say.
  std::shared_ptr<grpc::ServerCredentials> ForClients() const;
  // The cluster's ports: peers must show a certificate of the CA, with the name if the options have one.
  std::shared_ptr<grpc::ServerCredentials> ForPeers() const;

 private:
  class Source;
  explicit Credentials(std::unique_ptr<Source> source);
  std::shared_ptr<grpc::ServerCredentials> ForServer(bool ask_for_certificate,
                                                     const std::string& peer_name) const;

  std::unique_ptr<Source> source_;
};

using SharedCredentials = std::shared_ptr<const Credentials>;

// ForClients and ForPeers of what may be null.
std::shared_ptr<grpc::ServerCredentials> ClientPortCredentials(const SharedCredentials& credentials);
std::shared_ptr<grpc::ServerCredentials> PeerPortCredentials(const SharedCredentials& credentials);

// What becomes of gRPC's lines about TLS handshakes that failed.
enum class HandshakeLog {
  kExplained,  // one line that says what it means, at most one of a kind in ten seconds
  kSilent,     // nothing: the program itself says why its call failed
};
// Takes over gRPC's log in this process. Thread: main, before any server or channel.
void SetHandshakeLog(HandshakeLog kind);

}  // namespace millrace
