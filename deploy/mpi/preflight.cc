#include "deploy/mpi/preflight.h"

#include <netdb.h>
#include <openssl/evp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/options.h"
#include "common/process.h"
#include "common/status_macros.h"
#include "common/transport/channels.h"
#include "coordinator/planner/model_shape.h"
#include "coordinator/planner/placement.h"
#include "deploy/mpi/rendezvous.h"
#include "model/gguf_file.h"
#include "model/hyper_parameters.h"

namespace millrace {
namespace {

constexpr char kFirstLine[] = "millrace-preflight 1";
constexpr uint32_t kMaxRanks = 65536;
constexpr int kTimedOut = 124;                           // timeout(1)
constexpr uint64_t kDefaultKvBytes = uint64_t{1} << 30;  // as --kv-memory has it
constexpr size_t kShownHash = 12;

// Hex SHA-256 of this program's own file: two builds of one version need not compute the same bits. Empty:
// unreadable.
std::string BuildHash() {
  std::ifstream file("/proc/self/exe", std::ios::binary);
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> hash(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  if (!file || hash == nullptr || EVP_DigestInit_ex(hash.get(), EVP_sha256(), nullptr) != 1) return "";
  std::vector<char> piece(1 << 20);
  while (file) {
    file.read(piece.data(), static_cast<std::streamsize>(piece.size()));
    if (EVP_DigestUpdate(hash.get(), piece.data(), static_cast<size_t>(file.gcount())) != 1) return "";
  }
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  if (EVP_DigestFinal_ex(hash.get(), digest, &size) != 1) return "";
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), size));
}

// Why a server could not listen there; empty: it could.
std::string WhyNotListen(const std::string& listen) {
  const absl::StatusOr<HostPort> address = ParseHostPort(listen);
  if (!address.ok()) return std::string(address.status().message());
  if (address->port == 0) return "";
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (const int error =
          getaddrinfo(address->host.c_str(), absl::StrCat(address->port).c_str(), &hints, &found);
      error != 0) {
    return gai_strerror(error);
  }
  std::string why = "no socket can be made";
  if (const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0); fd >= 0) {
    const int one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    const bool open = bind(fd, found->ai_addr, found->ai_addrlen) == 0 && ::listen(fd, 1) == 0;
    why = open ? "" : std::strerror(errno);
    close(fd);
  }
  freeaddrinfo(found);
  return why;
}

std::string MemoryProblem(const PreflightTask& task) {
  const absl::StatusOr<uint64_t> needed = StageMemoryBytes(task);
  if (!needed.ok()) return std::string(needed.status().message());
  const uint64_t available = AvailableMemoryBytes();
  if (available == 0 || *needed <= available) return "";
  return absl::StrCat("its stages need ", FormatBytes(*needed), " of memory, ", FormatBytes(available),
                      " are free: use more hosts, or fewer ranks on this one");
}

// What is wrong with this host's files of TLS; empty: nothing, or no TLS.
std::string TlsProblem(const TlsOptions& tls) {
  if (!tls.on()) return "";
  const absl::StatusOr<TlsFiles> files = ReadTlsFiles(tls);
  if (!files.ok()) return std::string(files.status().message());
  if (files->leads_to_ca) return "";
  return absl::StrCat("--tls-cert ", tls.cert, ": does not lead to a certificate of --tls-ca ", tls.ca,
                      ", so the other hosts would refuse it");
}

struct HostReport {
  std::string version, build, fingerprint;
  absl::Time clock;
  std::vector<std::string> problems;
};

// No value: the output is not that of PreflightReport.
std::optional<HostReport> ReadHostReport(const std::vector<std::string>& output) {
  auto line = std::find(output.begin(), output.end(), kFirstLine);
  if (line == output.end()) return std::nullopt;
  HostReport report;
  bool whole = false;
  for (++line; line != output.end() && !whole; ++line) {
    const std::pair<std::string, std::string> parts = absl::StrSplit(*line, absl::MaxSplits(' ', 1));
    const auto& [key, value] = parts;
    double seconds = 0;
    if (key == "version") report.version = value;
    if (key == "build") report.build = value;
    if (key == "fingerprint") report.fingerprint = value;
    if (key == "problem") report.problems.push_back(value);
    if (key == "clock" && absl::SimpleAtod(value, &seconds))
      report.clock = absl::UnixEpoch() + absl::Seconds(seconds);
    whole = key == "end";
  }
  if (!whole) return std::nullopt;
  return report;
}

// What to tell of a host that sent no report.
std::string WhyNoReport(const HostAnswer& answer) {
  if (answer.exit_code == kTimedOut) {
    return absl::StrCat("no answer within ",
                        absl::FormatDuration(absl::Trunc(answer.ended - answer.began, absl::Seconds(1))),
                        ": check that it is up, that mpirun may log in there, and --interface");
  }
  std::string said;
  for (const std::string& line : answer.output) {
    const absl::string_view text = absl::StripAsciiWhitespace(line);
    if (text.empty() || text[0] == '-' || text[0] == '[') continue;
    if (absl::StrContains(text, "unknown flag") || absl::StrContains(text, "--preflight")) {
      return "its millrace-mpi does not know --preflight: install the same version on all hosts";
    }
    if (absl::StrContains(text, "unable to find the specified executable") ||
        absl::StrContains(text, "unable to launch the specified application")) {
      return "millrace-mpi cannot be run there: install it at the same path on all hosts";
    }
    if (said.empty()) said = std::string(text);
  }
  return absl::StrCat("cannot be reached, or starts nothing (exit code ", answer.exit_code, ")",
                      said.empty() ? "" : ": ", said);
}

// How far the host's clock is off at least, given when the asking machine asked and had the answer.
absl::Duration ClockSkew(const HostAnswer& answer, absl::Time clock) {
  if (clock < answer.began) return answer.began - clock;
  return std::max(absl::ZeroDuration(), clock - answer.ended);
}

}  // namespace

absl::StatusOr<RankRange> ParseRankRange(absl::string_view text) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, ':');
  RankRange ranks;
  if (parts.size() != 3 || !absl::SimpleAtoi(parts[0], &ranks.first) ||
      !absl::SimpleAtoi(parts[1], &ranks.count) || !absl::SimpleAtoi(parts[2], &ranks.size) ||
      ranks.size > kMaxRanks || ranks.first > ranks.size || ranks.count < 1 ||
      ranks.count > ranks.size - ranks.first) {
    return absl::InvalidArgumentError(
        absl::StrCat("--preflight: '", text, "' is not FIRST:COUNT:SIZE, ranks of this host and of all"));
  }
  return ranks;
}

absl::StatusOr<uint64_t> StageMemoryBytes(const PreflightTask& task) {
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(task.model));
  ASSIGN_OR_RETURN(const HyperParameters parameters, ReadHyperParameters(*file));
  const ModelShape shape = ReadModelShape(*file, parameters);
  LayerCosts costs;
  for (const uint64_t bytes : shape.layer_bytes) costs.layers.push_back(static_cast<double>(bytes));
  costs.first_stage = static_cast<double>(shape.embedding_bytes);
  costs.last_stage = static_cast<double>(shape.output_bytes);
  absl::StatusOr<std::vector<LayerRange>> stages =
      task.layers.empty() ? PlaceLayers(costs, task.stages)
                          : PlaceByCounts(task.layers, shape.num_layers, task.stages);
  if (!stages.ok()) return stages.status();
  const uint32_t context =
      task.context_tokens == 0 ? shape.context_tokens : std::min(task.context_tokens, shape.context_tokens);
  uint64_t total = 0;
  for (uint32_t rank = std::max(1u, task.ranks.first); rank < task.ranks.first + task.ranks.count; ++rank) {
    if (rank - 1 >= stages->size()) break;
    const LayerRange& layers = (*stages)[rank - 1];
    const uint64_t kv = shape.KvBytesPerToken(layers.count) * context;
    total += shape.WeightBytes(layers) + shape.ActivationBytes(layers, task.max_rows, context) +
             std::min(kv, task.kv_memory_bytes == 0 ? kDefaultKvBytes : task.kv_memory_bytes);
  }
  return total;
}

std::string PreflightReport(const PreflightTask& task) {
  std::string report = absl::StrCat(kFirstLine, "\nversion ", kVersion, "\nbuild ", BuildHash(), "\n");
  const auto add_problem = [&report](absl::string_view text) {
    std::string line(text);
    std::replace(line.begin(), line.end(), '\n', ' ');
    absl::StrAppend(&report, "problem ", line, "\n");
  };
  const bool needs_model = !task.model_is_sent || task.ranks.first == 0;
  if (const auto file = GgufFile::Open(task.model); file.ok()) {
    if (needs_model) absl::StrAppend(&report, "fingerprint ", (*file)->Fingerprint(), "\n");
    if (task.host_memory) {
      if (const std::string problem = MemoryProblem(task); !problem.empty()) add_problem(problem);
    }
  } else if (needs_model) {
    add_problem(file.status().message());
  }
  if (const std::string problem = TlsProblem(task.tls); !problem.empty()) add_problem(problem);
  if (!task.interface.empty()) {
    if (const auto address = AddressInside(task.interface); !address.ok())
      add_problem(address.status().message());
  }
  if (task.ranks.first == 0) {
    for (const std::string& listen : task.listens) {
      if (const std::string why = WhyNotListen(listen); !why.empty())
        add_problem(absl::StrCat("cannot listen on ", listen, ": ", why));
    }
  }
  // Last, so that the time that hashing takes is not taken for a difference.
  const int64_t now = absl::ToUnixMillis(absl::Now());
  absl::StrAppend(&report, "clock ", now / 1000, ".", absl::Dec(now % 1000, absl::kZeroPad3), "\nend\n");
  return report;
}

absl::StatusOr<std::vector<HostAnswer>> ReadHostAnswers(absl::string_view text) {
  std::vector<HostAnswer> answers;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    if (line.empty()) continue;
    if (line[0] == '\t') {
      if (answers.empty()) return absl::InvalidArgumentError("--preflight-judge: output before any host");
      answers.back().output.emplace_back(line.substr(1));
      continue;
    }
    const std::vector<std::string> parts = absl::StrSplit(line, ' ');
    HostAnswer answer;
    double began = 0, ended = 0;
    if (parts.size() != 5 || parts[0] != "host" || !absl::SimpleAtod(parts[2], &began) ||
        !absl::SimpleAtod(parts[3], &ended) || !absl::SimpleAtoi(parts[4], &answer.exit_code)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--preflight-judge: '", line, "' is not host NAME BEGAN ENDED CODE"));
    }
    answer.host = parts[1];
    answer.began = absl::UnixEpoch() + absl::Seconds(began);
    answer.ended = absl::UnixEpoch() + absl::Seconds(ended);
    answers.push_back(std::move(answer));
  }
  return answers;
}

Verdict JudgeHosts(const std::vector<HostAnswer>& answers) {
  Verdict verdict;
  const auto fail = [&verdict](const HostAnswer& answer, absl::string_view what) {
    verdict.failures.push_back(absl::StrCat(answer.host, ": ", what));
  };
  std::optional<HostReport> reference, model;
  std::string reference_host, model_host;
  for (const HostAnswer& answer : answers) {
    const std::optional<HostReport> report = ReadHostReport(answer.output);
    if (!report.has_value()) {
      fail(answer, WhyNoReport(answer));
      continue;
    }
    for (const std::string& problem : report->problems) fail(answer, problem);
    if (const absl::Duration skew = ClockSkew(answer, report->clock); skew > kMaxClockSkew) {
      fail(answer, absl::StrCat("its clock is ", absl::FormatDuration(absl::Trunc(skew, absl::Seconds(1))),
                                " off: set it (certificates and logs depend on it)"));
    }
    if (!reference.has_value()) {
      reference = report;
      reference_host = answer.host;
    } else if (report->version != reference->version) {
      fail(answer, absl::StrCat("millrace-mpi there is version ", report->version, ", on ", reference_host,
                                " ", reference->version, ": install the same on all hosts"));
    } else if (report->build != reference->build) {
      fail(answer, absl::StrCat("millrace-mpi there is another build of ", report->version, " (",
                                report->build.substr(0, kShownHash), ", on ", reference_host, " ",
                                reference->build.substr(0, kShownHash), "): install the same on all hosts"));
    }
    if (report->fingerprint.empty()) continue;
    if (!model.has_value()) {
      model = report;
      model_host = answer.host;
    } else if (report->fingerprint != model->fingerprint) {
      fail(answer, absl::StrCat("the model file there is another (",
                                report->fingerprint.substr(0, kShownHash), ", on ", model_host, " ",
                                model->fingerprint.substr(0, kShownHash), "): copy the same to all hosts"));
    }
  }
  if (verdict.failures.empty() && reference.has_value()) {
    verdict.summary =
        absl::StrCat(answers.size(), " hosts are ready: version ", reference->version, ", model ",
                     reference->fingerprint.substr(0, kShownHash), " (size, header and samples compared)");
  }
  return verdict;
}

}  // namespace millrace
