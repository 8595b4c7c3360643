#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/client.h"
#include "cli/trace_json.h"

namespace millrace::cli {
namespace {

struct Trace {
  v1::TraceBegin begin;
  std::vector<v1::TraceMicrobatch> microbatches;
  v1::TraceEnd end;
};

grpc::Status Record(Client& client, double seconds, Trace& trace) {
  grpc::ClientContext context;
  const Client::CancellableCall cancellable(client, context);
  v1::TraceRequest request;
  request.set_seconds(seconds);
  const auto reader = client.control->Trace(&context, request);
  v1::TraceEvent event;
  while (reader->Read(&event)) {
    if (event.has_begin()) trace.begin = event.begin();
    if (event.has_end()) trace.end = event.end();
    for (v1::TraceMicrobatch& microbatch : *event.mutable_microbatches()->mutable_microbatches()) {
      trace.microbatches.push_back(std::move(microbatch));
    }
  }
  return reader->Finish();
}

// A file that is known to be writable before anything is recorded for it, and goes again if nothing comes.
class OutputFile {
 public:
  explicit OutputFile(const std::string& path)
      : path_(path), existed_(access(path.c_str(), F_OK) == 0), file_(std::fopen(path.c_str(), "a")) {}
  ~OutputFile() {
    if (file_ == nullptr) return;
    std::fclose(file_);
    if (!existed_ && !written_) unlink(path_.c_str());
  }
  bool open() const { return file_ != nullptr; }
  bool Write(const std::string& text) {
    written_ = true;
    std::fclose(file_);
    file_ = std::fopen(path_.c_str(), "w");
    return file_ != nullptr && std::fwrite(text.data(), 1, text.size(), file_) == text.size() &&
           std::fflush(file_) == 0;
  }

 private:
  const std::string path_;
  const bool existed_;
  bool written_ = false;
  std::FILE* file_;
};

int ReportFile(const std::string& path) {
  std::fprintf(stderr, "millrace trace: --output %s: cannot be written: %s\n", path.c_str(),
               std::strerror(errno));
  return kExitFailure;
}

}  // namespace

int TraceCommand(const std::vector<std::string>& args) {
  ServerFlags flags;
  int64_t seconds = 5;
  std::string output = "trace.json";
  OptionSet set("millrace trace", "[--seconds N] [-o FILE]",
                "Records the microbatches for a while, as JSON that https://ui.perfetto.dev opens.");
  set.AddString("server", &flags.server, "HOST:PORT", "the coordinator's --listen address");
  flags.tls.DeclareClient(set);
  set.AddInt("seconds", &seconds, 1, 60, "how long; Ctrl-C ends it before");
  set.AddString("output", &output, "FILE", "where the trace goes; -o is short for it");
  std::vector<std::string> long_args = args;
  for (std::string& arg : long_args) {
    if (arg == "-o") arg = "--output";
  }
  const auto outcome = set.Parse(long_args, nullptr);
  if (!outcome.ok()) return ReportUsage("trace", outcome.status());
  if (*outcome == OptionSet::Outcome::kHelpShown) return kExitOk;
  if (const absl::Status tls = flags.Load(); !tls.ok()) return ReportUsage("trace", tls);
  OutputFile file(output);
  if (!file.open()) return ReportFile(output);
  Client client(flags);
  client.HoldStops();
  Trace trace;
  const grpc::Status status = Record(client, static_cast<double>(seconds), trace);
  const bool cut = !status.ok() && client.stopped();
  if (!status.ok() && !cut) return ReportStatus(status, flags);
  if (!file.Write(TraceJson(trace.begin, trace.microbatches))) return ReportFile(output);
  std::printf("%zu microbatches%s in %s; open it at https://ui.perfetto.dev\n", trace.microbatches.size(),
              cut ? " until Ctrl-C" : "", output.c_str());
  if (trace.end.missed() > 0) {
    std::printf("%llu more came faster than they could be sent here, and are missing\n",
                static_cast<unsigned long long>(trace.end.missed()));
  }
  return kExitOk;
}

}  // namespace millrace::cli
