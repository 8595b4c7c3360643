#include "common/transport/credentials.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/health_state.h"
#include "common/transport/channels.h"
#include "common/transport/tls_probe.h"
#include "gmock/gmock.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "tests/unit/transport/test_ca.h"

namespace millrace {
namespace {

using grpc::health::v1::Health;
using ::testing::HasSubstr;

absl::StatusOr<TlsOptions> Parse(const std::vector<std::string>& args, bool server,
                                 bool with_clients = true) {
  TlsFlags flags;
  OptionSet set("prog", "", "");
  if (server) flags.DeclareServer(set, with_clients);
  if (!server) flags.DeclareClient(set);
  const absl::Status status = set.Parse(args, nullptr).status();
  if (!status.ok()) return status;
  return flags.Finish();
}

TEST(TlsFlags, TakeAllThreeFilesOrNone) {
  EXPECT_FALSE(Parse({}, true)->on());
  const auto all = Parse({"--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a", "--tls-name", "n"}, true);
  ASSERT_TRUE(all.ok());
  EXPECT_TRUE(all->on());
  EXPECT_EQ(all->name, "n");
  EXPECT_FALSE(all->require_client_certificate);
  const std::pair<std::vector<std::string>, const char*> wrong[] = {
      {{"--tls-cert", "c"}, "--tls-cert without --tls-key and --tls-ca: TLS takes all three files"},
      {{"--tls-ca", "a"}, "--tls-ca without --tls-cert and --tls-key"},
      {{"--tls-cert", "c", "--tls-key", "k"}, "--tls-cert and --tls-key without --tls-ca"},
      {{"--tls-cert", "c", "--tls-ca", "a"}, "--tls-cert and --tls-ca without --tls-key"},
      {{"--tls-name", "n"}, "--tls-name without --tls-cert, --tls-key and --tls-ca: there is no TLS"},
      {{"--tls-clients", "require"}, "--tls-clients require without --tls-cert"},
      {{"--tls-clients", "some"}, "--tls-clients: 'some' is not any or require"},
  };
  for (const auto& [args, message] : wrong) {
    EXPECT_THAT(Parse(args, true).status().message(), HasSubstr(message));
  }
  EXPECT_TRUE(Parse({"--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a", "--tls-clients", "require"}, true)
                  ->require_client_certificate);
  EXPECT_FALSE(Parse({"--tls-clients", "any"}, true, /*with_clients=*/false).ok());
}

TEST(TlsFlags, OfClientsNeedTheCaOnly) {
  EXPECT_TRUE(Parse({"--tls-ca", "a"}, false)->on());
  EXPECT_THAT(Parse({"--tls-cert", "c", "--tls-key", "k"}, false).status().message(),
              HasSubstr("--tls-cert and --tls-key without --tls-ca"));
  EXPECT_THAT(Parse({"--tls-ca", "a", "--tls-key", "k"}, false).status().message(),
              HasSubstr("--tls-key and --tls-ca without --tls-cert"));
  EXPECT_THAT(Parse({"--tls-name", "n"}, false).status().message(), HasSubstr("without --tls-ca"));
}

class TlsTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string folder = testing::TempDir() + "tlsXXXXXX";
    ASSERT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = folder_ + "/" + name;
    std::ofstream(path + ".part") << text;
    std::filesystem::rename(path + ".part", path);
    return path;
  }
  // The files of a process whose certificate carries 127.0.0.1 and "node".
  TlsOptions Files(const std::string& name, const PemPair& pair, const std::string& ca) {
    TlsOptions options;
    options.cert = Write(name + ".pem", pair.cert);
    options.key = Write(name + ".key", pair.key);
    options.ca = Write(name + ".ca", ca);
    return options;
  }
  TlsOptions Files(const std::string& name, const TestCa& ca) {
    return Files(name, ca.Issue("IP:127.0.0.1,DNS:node"), ca.pem());
  }
  static SharedCredentials Load(const TlsOptions& options, bool follow = false) {
    auto loaded = Credentials::Load(options, follow);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return loaded.ok() ? *loaded : nullptr;
  }

  std::string folder_;
  TestCa ca_;
};

// A server that answers.
class Listener {
 public:
  using Port = std::shared_ptr<grpc::ServerCredentials> (*)(const SharedCredentials&);
  // `port_kind`: ClientPortCredentials or PeerPortCredentials.
  Listener(SharedCredentials credentials, Port port_kind) : credentials_(std::move(credentials)) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", port_kind(credentials_), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    address_ = absl::StrCat("127.0.0.1:", port);
  }
  ~Listener() { server_->Shutdown(std::chrono::system_clock::now()); }
  const std::string& address() const { return address_; }

 private:
  const SharedCredentials credentials_;
  Health::Service service_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

// While it lives, what is written to standard error can be read.
class StandardErrorInFile {
 public:
  explicit StandardErrorInFile(std::string path) : path_(std::move(path)), saved_(dup(STDERR_FILENO)) {
    const int fd = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(fd, STDERR_FILENO);
    close(fd);
  }
  ~StandardErrorInFile() {
    dup2(saved_, STDERR_FILENO);
    close(saved_);
  }
  std::string Text() const {
    std::ifstream file(path_);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }

 private:
  const std::string path_;
  const int saved_;
};

// Whether a call over a new connection arrives.
bool Arrives(const std::string& address, const SharedCredentials& credentials) {
  const auto channel = MakeBulkChannel(address, credentials);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status = Health::NewStub(channel)->Check(&context, {}, &response);
  EXPECT_NE(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  return status.error_code() == grpc::StatusCode::UNIMPLEMENTED;
}

TEST_F(TlsTest, FilesThatAreWrongAreNamed) {
  const PemPair good = ca_.Issue("DNS:node");
  const TlsOptions options = Files("a", good, ca_.pem());
  const auto files = ReadTlsFiles(options);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_TRUE(files->leads_to_ca);
  EXPECT_GT(files->expires, absl::Now());

  const auto fails = [&](const TlsOptions& wrong, const std::string& message) {
    const auto result = ReadTlsFiles(wrong);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(result.status().message(), HasSubstr(message));
    EXPECT_EQ(result.status().message().find('\n'), absl::string_view::npos);
  };
  TlsOptions wrong = options;
  wrong.cert = folder_ + "/none";
  fails(wrong, absl::StrCat("--tls-cert ", wrong.cert, ": cannot be read: No such file"));
  wrong = options;
  wrong.ca = folder_;
  fails(wrong, "cannot be read: Is a directory");
  wrong.ca = Write("empty", "");
  fails(wrong, "--tls-ca " + wrong.ca + ": holds no PEM certificate");
  wrong.ca = Write("huge", std::string((1 << 20) + 1, 'x'));
  fails(wrong, "larger than 1MiB");
  fails(Files("b", {good.cert, "no key"}, ca_.pem()), "b.key: holds no PEM private key");
  fails(Files("b", {good.key, good.key}, ca_.pem()), "b.pem: holds no PEM certificate");
  fails(Files("b", {good.cert, ca_.Issue("DNS:node").key}, ca_.pem()),
        "b.key: does not match the certificate in --tls-cert ");
  const absl::Time now = absl::Now();
  fails(Files("b", ca_.Issue("DNS:node", now - absl::Hours(2), now - absl::Minutes(1)), ca_.pem()),
        "b.pem: the certificate expired on 2");
  fails(Files("b", ca_.Issue("DNS:node", now + absl::Hours(1), now + absl::Hours(2)), ca_.pem()),
        "b.pem: the certificate is not valid before 2");
  fails(Files("b", good, TestCa("old", -absl::Minutes(1)).pem()), "b.ca: the certificate expired on 2");
  EXPECT_FALSE(ReadTlsFiles(Files("b", good, TestCa("other").pem()))->leads_to_ca);
}

TEST_F(TlsTest, ThePortOfClientsShowsACertificate) {
  EXPECT_EQ(Load(TlsOptions()), nullptr);
  const TestCa other("other CA");
  const Listener listener(Load(Files("server", ca_)), ClientPortCredentials);
  TlsOptions client;
  client.ca = Write("ca", ca_.pem());
  EXPECT_TRUE(Arrives(listener.address(), Load(client)));
  client.name = "node";
  EXPECT_TRUE(Arrives(listener.address(), Load(client)));

  const auto fails = [&](const SharedCredentials& credentials, const std::string& why) {
    EXPECT_FALSE(Arrives(listener.address(), credentials)) << why;
    EXPECT_THAT(ExplainFailedConnection(listener.address(), credentials), HasSubstr(why));
  };
  fails(nullptr, listener.address() + " speaks TLS: give --tls-ca");
  client.name = "elsewhere";
  fails(Load(client), "is for 127.0.0.1, node, not for --tls-name elsewhere");
  client.name.clear();
  client.ca = Write("other", other.pem());
  fails(Load(client), "was not signed by --tls-ca " + client.ca);
}

TEST_F(TlsTest, ThePortOfPeersAsksForOne) {
  const TestCa other("other CA");
  const absl::Time now = absl::Now();
  const Listener listener(Load(Files("server", ca_)), PeerPortCredentials);
  EXPECT_TRUE(Arrives(listener.address(), Load(Files("peer", ca_))));
  const auto fails = [&](const TlsOptions& options, const std::string& why) {
    const SharedCredentials credentials = Load(options);
    EXPECT_FALSE(Arrives(listener.address(), credentials)) << why;
    EXPECT_THAT(ExplainFailedConnection(listener.address(), credentials), HasSubstr(why));
  };
  TlsOptions none;
  none.ca = Write("ca", ca_.pem());
  fails(none, "asks for a certificate: give --tls-cert and --tls-key");
  fails(Files("stranger", other.Issue("IP:127.0.0.1"), ca_.pem()), "does not accept --tls-cert");
  // It expires while it is in use.
  const SharedCredentials brief =
      Load(Files("brief", ca_.Issue("DNS:x", now - absl::Hours(1), now + absl::Seconds(3)), ca_.pem()));
  while (absl::Now() < now + absl::Seconds(4)) absl::SleepFor(absl::Milliseconds(50));
  EXPECT_FALSE(Arrives(listener.address(), brief));
  EXPECT_THAT(ExplainFailedConnection(listener.address(), brief), HasSubstr("the certificate expired on"));
}

TEST_F(TlsTest, ThePortOfPeersAsksForTheNameToo) {
  TlsOptions options = Files("server", ca_);
  options.name = "node";
  const Listener listener(Load(options), PeerPortCredentials);
  EXPECT_TRUE(Arrives(listener.address(), Load(options)));
  const SharedCredentials nameless = Load(Files("peer", ca_.Issue("DNS:somebody"), ca_.pem()));
  EXPECT_FALSE(Arrives(listener.address(), nameless));
  EXPECT_THAT(ExplainFailedConnection(listener.address(), nameless), HasSubstr("does not accept --tls-cert"));
}

TEST_F(TlsTest, APeerWithoutTlsIsNamed) {
  const Listener listener(nullptr, PeerPortCredentials);
  const SharedCredentials credentials = Load(Files("a", ca_));
  EXPECT_TRUE(Arrives(listener.address(), nullptr));
  EXPECT_EQ(ExplainFailedConnection(listener.address(), nullptr), "");
  EXPECT_FALSE(Arrives(listener.address(), credentials));
  EXPECT_THAT(ExplainFailedConnection(listener.address(), credentials),
              HasSubstr(listener.address() + " does not speak TLS"));
  EXPECT_EQ(ExplainFailedConnection("127.0.0.1:1", credentials), "") << "nobody listens";
}

TEST_F(TlsTest, FollowsFilesThatChange) {
  const TestCa next("next CA");
  const TlsOptions options = Files("server", ca_);
  const StandardErrorInFile log(folder_ + "/log");
  const Listener listener(Load(options, /*follow=*/true), ClientPortCredentials);
  TlsOptions before, after;
  before.ca = Write("before", ca_.pem());
  after.ca = Write("after", next.pem());
  EXPECT_TRUE(Arrives(listener.address(), Load(before)));
  EXPECT_FALSE(Arrives(listener.address(), Load(after)));
  const absl::Time deadline = Clock::Steady().Now() + absl::Seconds(60);
  const auto waits_for = [&](const char* line) {
    while (log.Text().find(line) == std::string::npos && Clock::Steady().Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(50));
    }
    return log.Text().find(line) != std::string::npos;
  };
  // A key that came before its certificate changes nothing.
  const PemPair pair = next.Issue("IP:127.0.0.1");
  Write("server.key", pair.key);
  EXPECT_TRUE(waits_for("what they held before stays in use"));
  EXPECT_TRUE(Arrives(listener.address(), Load(before)));
  Write("server.pem", pair.cert);
  EXPECT_TRUE(waits_for("files have changed; new connections use them"));
  bool arrives = false;
  while (!arrives && Clock::Steady().Now() < deadline) arrives = Arrives(listener.address(), Load(after));
  EXPECT_TRUE(arrives);
  EXPECT_FALSE(Arrives(listener.address(), Load(before)));
}

}  // namespace
}  // namespace millrace
