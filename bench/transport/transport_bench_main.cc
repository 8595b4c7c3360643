// transport_bench: what a hop costs beside plain sockets, between two processes of this machine.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "bench/transport/hop_echo.h"
#include "bench/transport/raw_echo.h"
#include "common/check.h"
#include "common/options.h"
#include "common/process.h"

namespace millrace::bench {
namespace {

constexpr size_t kSmallBytes = 16384;
constexpr size_t kLargeBytes[] = {size_t{1} << 20, size_t{4} << 20};

// What was measured of one pair, round by round; the names are those of the JSON, too.
struct Row {
  std::string name;
  std::string unit;
  double target = 0;         // of the median ratio; 0: none
  bool lower_better = true;  // the ratio is hop / plain: of times, or of rates
  std::vector<double> hop;
  std::vector<double> plain;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// The median of the rounds' ratios: what disturbs a round disturbs both of its halves.
double Ratio(const Row& row) {
  std::vector<double> ratios;
  for (size_t i = 0; i < row.hop.size(); ++i) ratios.push_back(row.hop[i] / row.plain[i]);
  return Median(ratios);
}

bool Meets(const Row& row) {
  return row.lower_better ? Ratio(row) <= row.target : Ratio(row) >= row.target;
}

struct CpuTicks {
  double steal = 0;
  double all = 0;
};
CpuTicks ReadTicks() {
  std::ifstream file("/proc/stat");
  std::string name;
  file >> name;
  CpuTicks ticks;
  double value = 0;
  for (int i = 0; i < 8 && file >> value; ++i) {
    ticks.all += value;
    if (i == 7) ticks.steal = value;
  }
  return ticks;
}
double ReadLoad() {
  double load = 0;
  std::ifstream("/proc/loadavg") >> load;
  return load;
}

// The other half of a pair: this program again, with a word that says what to be.
class Helper {
 public:
  explicit Helper(const std::vector<std::string>& args) {
    int out[2];
    MILLRACE_CHECK(pipe(out) == 0);
    std::vector<char*> argv;
    std::vector<std::string> words = args;
    words.insert(words.begin(), "transport_bench");
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    pid_ = fork();
    MILLRACE_CHECK(pid_ >= 0);
    if (pid_ == 0) {
      dup2(out[1], STDOUT_FILENO);
      close(out[0]);
      close(out[1]);
      execv("/proc/self/exe", argv.data());
      _exit(127);
    }
    close(out[1]);
    FILE* lines = fdopen(out[0], "r");
    char line[512] = {};
    MILLRACE_CHECK(std::fgets(line, sizeof(line), lines) != nullptr);
    line_ = std::string(line, std::strcspn(line, "\n"));
    std::fclose(lines);
  }
  ~Helper() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Helper(const Helper&) = delete;
  Helper& operator=(const Helper&) = delete;

  const std::string& line() const { return line_; }

 private:
  pid_t pid_ = -1;
  std::string line_;
};

class Bench {
 public:
  Bench(int64_t rounds, int64_t echoes, int64_t megabytes)
      : rounds_(rounds),
        echoes_(static_cast<uint32_t>(echoes)),
        megabytes_(static_cast<size_t>(megabytes)),
        raw_tcp_helper_({"--serve-plain-tcp"}),
        raw_unix_helper_({"--serve-plain-unix"}),
        hop_helper_({"--serve-hops", hops_.addresses().tcp, hops_.addresses().unix_socket}),
        raw_{RawClient(raw_tcp_helper_.line()), RawClient(raw_unix_helper_.line())} {
    const size_t space = hop_helper_.line().find(' ');
    hops_.Connect({hop_helper_.line().substr(0, space), hop_helper_.line().substr(space + 1)});
  }

  std::vector<Row> Run() {
    std::vector<Row> rows;
    for (const bool over_unix : {false, true}) {
      const std::string socket = over_unix ? "unix" : "tcp";
      const double round_trip = over_unix ? 0 : 1.6;
      const double rate = over_unix ? 0 : 0.75;
      rows.push_back({"echo_16k_" + socket, "us", round_trip, true, {}, {}});
      rows.push_back({"echo_16k_by_queue_" + socket, "us", 0, true, {}, {}});
      for (const size_t bytes : kLargeBytes) {
        rows.push_back({absl::StrFormat("one_way_%um_%s", bytes >> 20, socket), "GB/s", rate, false, {}, {}});
      }
    }
    for (int64_t round = -1; round < rounds_; ++round) Round(rows, round >= 0);
    return rows;
  }

 private:
  // A first round, which is not kept, opens windows and fills pools.
  void Round(std::vector<Row>& rows, bool keep) {
    auto row = rows.begin();
    const auto add = [&](double plain, double hop) {
      if (keep) {
        row->plain.push_back(plain);
        row->hop.push_back(hop);
      }
      ++row;
    };
    for (const bool over_unix : {false, true}) {
      RawClient& raw = raw_[over_unix];
      const double scale = 1e6 / echoes_;
      const double plain = raw.Echo(kSmallBytes, echoes_) * scale;
      add(plain, hops_.Echo(over_unix, kSmallBytes, echoes_) * scale);
      add(plain, hops_.EchoByQueue(over_unix, kSmallBytes, echoes_) * scale);
      for (const size_t bytes : kLargeBytes) {
        const auto count = static_cast<uint32_t>(std::max<size_t>(2, (megabytes_ << 20) / bytes));
        const double gigabytes = static_cast<double>(bytes) * count / 1e9;
        const double plain_rate = gigabytes / raw.OneWay(bytes, count);
        add(plain_rate, gigabytes / hops_.OneWay(over_unix, bytes, count));
      }
    }
  }

  const int64_t rounds_;
  const uint32_t echoes_;
  const size_t megabytes_;
  HopClient hops_;
  Helper raw_tcp_helper_;
  Helper raw_unix_helper_;
  Helper hop_helper_;
  RawClient raw_[2];
};

void Print(const std::vector<Row>& rows, double steal, double load_before, double load_after) {
  std::printf("%-26s %10s %10s %7s  %s\n", "what", "hop", "plain", "ratio", "target");
  for (const Row& row : rows) {
    std::string target = "-";
    if (row.target > 0) {
      target = absl::StrFormat("%s %.2f %s", row.lower_better ? "<=" : ">=", row.target,
                               Meets(row) ? "met" : "MISSED");
    }
    std::printf("%-26s %10.2f %10.2f %7.2f  %s\n", (row.name + ", " + row.unit).c_str(), Median(row.hop),
                Median(row.plain), Ratio(row), target.c_str());
  }
  std::printf("medians of %zu rounds; stolen CPU %.1f %%, load average %.2f before, %.2f after\n",
              rows[0].hop.size(), steal * 100, load_before, load_after);
}

std::string JsonList(const std::vector<double>& values) {
  std::string text = "[";
  for (const double value : values) text += absl::StrFormat("%s%.4f", text.size() > 1 ? ", " : "", value);
  return text + "]";
}

bool WriteJson(const std::string& path, const std::vector<Row>& rows, double steal, double load_before,
               double load_after) {
  std::ofstream file(path);
  file << absl::StrFormat("{\"steal_share\": %.4f, \"load_before\": %.2f, \"load_after\": %.2f, \"rows\": {",
                          steal, load_before, load_after);
  bool first = true;
  for (const Row& row : rows) {
    file << absl::StrFormat(
        "%s\n  \"%s\": {\"unit\": \"%s\", \"hop\": %.4f, \"plain\": %.4f, \"ratio\": %.4f, \"target\": %s, "
        "\"lower_is_better\": %s, \"hop_rounds\": %s, \"plain_rounds\": %s}",
        first ? "" : ",", row.name, row.unit, Median(row.hop), Median(row.plain), Ratio(row),
        row.target > 0 ? absl::StrFormat("%.2f", row.target) : "null", row.lower_better ? "true" : "false",
        JsonList(row.hop), JsonList(row.plain));
    first = false;
  }
  file << "\n}}\n";
  file.close();
  return static_cast<bool>(file);
}

int Serve(const std::vector<std::string>& args) {
  if (args[0] == "--serve-hops" && args.size() == 3) RunHopEcho({args[1], args[2]});
  RawServer server(args[0] == "--serve-plain-tcp");
  std::printf("%s\n", server.address().c_str());
  std::fflush(stdout);
  server.ServeOne();
  return kExitOk;
}

int Main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  if (!args.empty() && args[0].rfind("--serve-", 0) == 0) return Serve(args);
  int64_t rounds = 7;
  int64_t echoes = 2000;
  int64_t megabytes = 256;
  std::string json;
  OptionSet set("transport_bench", "[options]",
                "Measures hops between two processes of this machine beside plain sockets that move the same "
                "bytes: round trips of 16 KiB, and 1 and 4 MiB one way, over TCP and Unix sockets.");
  set.AddInt("rounds", &rounds, 1, 1000, "rounds, in each of which every pair is measured once");
  set.AddInt("echoes", &echoes, 1, 1000000, "round trips of one measurement");
  set.AddInt("megabytes", &megabytes, 1, 4096, "MiB one way of one measurement");
  set.AddString("json", &json, "FILE", "write what was measured to this file, too");
  const absl::StatusOr<OptionSet::Outcome> outcome = set.Parse(args, nullptr);
  if (!outcome.ok()) {
    std::fprintf(stderr, "transport_bench: %s\n", std::string(outcome.status().message()).c_str());
    return kExitUsage;
  }
  if (*outcome == OptionSet::Outcome::kHelpShown) return kExitOk;
  const double load_before = ReadLoad();
  const CpuTicks before = ReadTicks();
  const std::vector<Row> rows = Bench(rounds, echoes, megabytes).Run();
  const CpuTicks after = ReadTicks();
  const double steal = (after.steal - before.steal) / std::max(1.0, after.all - before.all);
  const double load_after = ReadLoad();
  Print(rows, steal, load_before, load_after);
  if (!json.empty() && !WriteJson(json, rows, steal, load_before, load_after)) {
    std::fprintf(stderr, "transport_bench: cannot write %s\n", json.c_str());
    return kExitFailure;
  }
  return kExitOk;
}

}  // namespace
}  // namespace millrace::bench

int main(int argc, char** argv) {
  return millrace::bench::Main(argc, argv);
}
