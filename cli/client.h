// What the subcommands of `millrace` share: the connection, errors, requests from flags.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "common/options.h"
#include "common/process.h"
#include "common/transport/credentials.h"
#include "google/protobuf/message.h"
#include "grpcpp/grpcpp.h"
#include "millrace/v1/control.grpc.pb.h"
#include "millrace/v1/inference.grpc.pb.h"

namespace millrace::cli {

// Flags of every subcommand.
struct ServerFlags {
  std::string server = "127.0.0.1:50051";
  bool json = false;
  TlsFlags tls;
  SharedCredentials credentials;  // null: plain text
  void Declare(OptionSet& set);
  // Settles `credentials`. INVALID_ARGUMENT: the TLS flags, or their files, are wrong. Thread: main, before
  // Client.
  absl::Status Load();
};

// Connections to one server, and what Ctrl-C does meanwhile: it cancels the call in progress, or ends the
// program where there is none. Thread: main. Make it before anything that starts threads.
class Client {
 public:
  // REQUIRES: flags.Load() was OK.
  explicit Client(const ServerFlags& flags);

  // While it lives, Ctrl-C cancels this call. At most one at a time.
  class CancellableCall {
   public:
    CancellableCall(Client& client, grpc::ClientContext& context);
    ~CancellableCall();

   private:
    Client& client_;
  };

  // From now on Ctrl-C does not end the program where no call is in progress: it ends WaitForStop.
  void HoldStops();
  bool stopped() const;
  // Waits until Ctrl-C, at most `timeout`; whether it came.
  bool WaitForStop(absl::Duration timeout);

 private:
  void OnSignal(int signal);

  mutable Mutex mutex_;
  CondVar changed_;
  bool hold_stops_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* cancellable_ ABSL_GUARDED_BY(mutex_) = nullptr;
  // First, so that the threads of the channel do not take the signals.
  SignalWatcher signals_;

 public:
  const std::shared_ptr<grpc::Channel> channel;
  const std::unique_ptr<v1::Inference::Stub> inference;
  const std::unique_ptr<v1::Control::Stub> control;
};

// Prints one line on standard error (code, message, reason, whether to retry) and gives the exit code; 0 for
// OK. Where no connection comes about and TLS is to blame, it says so.
int ReportStatus(const grpc::Status& status, const ServerFlags& flags);

// Prints a usage error and gives its exit code.
int ReportUsage(absl::string_view command, const absl::Status& status);

// One line of JSON, fields as in the proto.
std::string ToJson(const google::protobuf::Message& message);

// Flags that make a GenerateRequest.
class GenerateFlags {
 public:
  void Declare(OptionSet& set);
  void Fill(v1::GenerateRequest& request) const;
  absl::Duration timeout() const { return timeout_; }

 private:
  int64_t max_tokens_ = 0;
  int64_t min_tokens_ = 0;
  double temperature_ = -1;
  int64_t top_k_ = 0;
  double top_p_ = 1;
  double min_p_ = 0;
  double repetition_penalty_ = 1;
  double presence_penalty_ = 0;
  double frequency_penalty_ = 0;
  int64_t seed_ = -1;
  int64_t logprobs_ = -1;
  std::string stop_;
  std::string request_id_;
  bool ignore_eos_ = false;
  int64_t priority_ = 0;
  std::string cache_salt_;
  absl::Duration timeout_ = absl::ZeroDuration();
};

struct StreamOutcome {
  grpc::Status status;
  std::string text;       // all of the answer
  v1::Finished finished;  // if the status is OK
};

// Runs a request, calling `on_event` for each event. Ctrl-C cancels it.
StreamOutcome RunGenerate(Client& client, const v1::GenerateRequest& request, absl::Duration timeout,
                          const std::function<void(const v1::GenerateEvent&)>& on_event);

// One line about a finished request: tokens, speed, times.
std::string Summary(const v1::Finished& finished);

// The subcommands. `args` without the program's and the subcommand's names; the exit code.
int HealthCommand(const std::vector<std::string>& args);
int GenerateCommand(const std::vector<std::string>& args);
int ChatCommand(const std::vector<std::string>& args);
int DrainCommand(const std::vector<std::string>& args);
int TokenizeCommand(const std::vector<std::string>& args);
int PlanCommand(const std::vector<std::string>& args);
int StatusCommand(const std::vector<std::string>& args);
int TraceCommand(const std::vector<std::string>& args);

}  // namespace millrace::cli
