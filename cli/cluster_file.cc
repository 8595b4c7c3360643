#include "cli/cluster_file.h"

#include <yaml-cpp/yaml.h>

#include <cmath>
#include <fstream>
#include <set>
#include <sstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "common/options.h"
#include "common/status_macros.h"
#include "coordinator/planner/stage_costs.h"

namespace millrace::cli {
namespace {

// Dense 16-bit tensor throughput and memory bandwidth, from NVIDIA's data sheets: A100 (SXM), H100 and H200
// (SXM), B200 (DGX B200, an eighth of it), L4, L40S, and the Ada architecture's white paper. Upper bounds,
// not measurements.
struct Gpu {
  const char* name;
  double tflops;
  double gb_per_second;
  uint64_t memory_gb;
};
constexpr Gpu kGpus[] = {
    {"A100-40", 312, 1555, 40}, {"A100-80", 312, 2039, 80},  {"H100", 989, 3350, 80},
    {"H200", 989, 4800, 141},   {"B200", 2250, 8000, 180},   {"L4", 121, 300, 24},
    {"L40S", 362, 864, 48},     {"RTX-4090", 165, 1008, 24},
};
// Of the names above.
constexpr char kNameCharacters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-";
// Launching the kernels of one step; an order of magnitude.
constexpr double kGpuOverhead = 50e-6;

class Reader {
 public:
  explicit Reader(std::string name) : name_(std::move(name)) {}

  absl::StatusOr<PlannedCluster> Read(const YAML::Node& root) const;

 private:
  absl::Status Wrong(const YAML::Node& node, absl::string_view what) const {
    const YAML::Mark mark = node.Mark();
    if (mark.is_null()) return absl::InvalidArgumentError(absl::StrCat(name_, ": ", what));
    return absl::InvalidArgumentError(
        absl::StrCat(name_, ":", mark.line + 1, ":", mark.column + 1, ": ", what));
  }
  absl::Status OnlyKeys(const YAML::Node& map, const std::set<std::string>& known) const;
  absl::StatusOr<double> Number(const YAML::Node& map, const char* key, double min, double max,
                                double otherwise) const;
  absl::StatusOr<uint64_t> Bytes(const YAML::Node& map, const char* key) const;
  absl::StatusOr<std::vector<ProfilePoint>> Points(const YAML::Node& map, const char* key) const;
  absl::Status ReadGpu(const YAML::Node& node, PlannedWorker& worker) const;
  absl::Status ReadProfile(const YAML::Node& node, PlannedWorker& worker) const;
  absl::Status ReadWorker(const YAML::Node& node, PlannedCluster& cluster) const;
  absl::Status ReadLink(const YAML::Node& node, PlannedCluster& cluster) const;

  const std::string name_;
};

absl::Status Reader::OnlyKeys(const YAML::Node& map, const std::set<std::string>& known) const {
  if (!map.IsMap()) return Wrong(map, absl::StrCat("expected ", absl::StrJoin(known, ", ")));
  for (const auto& entry : map) {
    const std::string key = entry.first.IsScalar() ? entry.first.Scalar() : "";
    if (known.count(key) == 0) {
      return Wrong(entry.first, absl::StrCat("unknown key '", key, "'; known: ", absl::StrJoin(known, ", ")));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<double> Reader::Number(const YAML::Node& map, const char* key, double min, double max,
                                      double otherwise) const {
  const YAML::Node node = map[key];
  if (!node) return otherwise;
  double value = 0;
  if (!node.IsScalar() || !absl::SimpleAtod(node.Scalar(), &value) || !(value >= min && value <= max)) {
    return Wrong(node, absl::StrCat(key, ": expected a number from ", min, " to ", max));
  }
  return value;
}

absl::StatusOr<uint64_t> Reader::Bytes(const YAML::Node& map, const char* key) const {
  const YAML::Node node = map[key];
  if (!node) return 0;
  const absl::StatusOr<uint64_t> bytes = ParseBytes(node.IsScalar() ? node.Scalar() : "");
  if (!bytes.ok()) return Wrong(node, absl::StrCat(key, ": ", bytes.status().message()));
  return *bytes;
}

absl::StatusOr<std::vector<ProfilePoint>> Reader::Points(const YAML::Node& map, const char* key) const {
  const YAML::Node list = map[key];
  if (!list || !list.IsSequence() || list.size() > kMaxProfilePoints) {
    return Wrong(map, absl::StrCat(key, ": expected up to ", kMaxProfilePoints,
                                   " lists [rows, sequences, context, seconds]"));
  }
  std::vector<ProfilePoint> points;
  for (const YAML::Node& item : list) {
    ProfilePoint& point = points.emplace_back();
    const bool four = item.IsSequence() && item.size() == 4 && item[0].IsScalar() && item[1].IsScalar() &&
                      item[2].IsScalar() && item[3].IsScalar();
    if (!four || !absl::SimpleAtoi(item[0].Scalar(), &point.rows) ||
        !absl::SimpleAtoi(item[1].Scalar(), &point.sequences) ||
        !absl::SimpleAtoi(item[2].Scalar(), &point.context) ||
        !absl::SimpleAtod(item[3].Scalar(), &point.seconds)) {
      return Wrong(item, absl::StrCat(key, ": expected [rows, sequences, context, seconds]"));
    }
  }
  return points;
}

absl::Status Reader::ReadGpu(const YAML::Node& node, PlannedWorker& worker) const {
  const std::string wanted = node["gpu"].IsScalar() ? node["gpu"].Scalar() : "";
  ASSIGN_OR_RETURN(const double efficiency, Number(node, "efficiency", 0.01, 1, 1));
  std::vector<std::string> names;
  for (const Gpu& gpu : kGpus) {
    names.push_back(gpu.name);
    if (!absl::EqualsIgnoreCase(gpu.name, wanted)) continue;
    worker.speed =
        DeviceSpeed{gpu.tflops * 1e12 * efficiency, gpu.gb_per_second * 1e9 * efficiency, kGpuOverhead};
    if (worker.memory_bytes == 0) worker.memory_bytes = gpu.memory_gb * 1000000000;
    if (worker.name.empty()) worker.name = gpu.name;
    return absl::OkStatus();
  }
  return Wrong(node["gpu"], absl::StrCat("unknown gpu '", wanted, "'; known: ", absl::StrJoin(names, ", ")));
}

absl::Status Reader::ReadProfile(const YAML::Node& node, PlannedWorker& worker) const {
  RETURN_IF_ERROR(OnlyKeys(node, {"layer_elements", "overhead_seconds", "layer", "head"}));
  WorkerProfile profile;
  ASSIGN_OR_RETURN(profile.layer_elements, Number(node, "layer_elements", 1, 1e13, 0));
  ASSIGN_OR_RETURN(profile.overhead_seconds, Number(node, "overhead_seconds", 0, 3600, 0));
  ASSIGN_OR_RETURN(profile.layer, Points(node, "layer"));
  ASSIGN_OR_RETURN(profile.head, Points(node, "head"));
  const absl::Status checked = CheckProfile(profile);
  if (!checked.ok()) return Wrong(node, checked.message());
  worker.profile = std::move(profile);
  return absl::OkStatus();
}

absl::Status Reader::ReadWorker(const YAML::Node& node, PlannedCluster& cluster) const {
  RETURN_IF_ERROR(OnlyKeys(node, {"name", "count", "memory", "kv_memory", "gpu", "efficiency", "gflops",
                                  "gb_per_second", "profile"}));
  PlannedWorker worker;
  if (node["name"]) worker.name = node["name"].IsScalar() ? node["name"].Scalar() : "";
  ASSIGN_OR_RETURN(const double count, Number(node, "count", 1, static_cast<double>(kMaxPlanWorkers), 1));
  ASSIGN_OR_RETURN(worker.memory_bytes, Bytes(node, "memory"));
  ASSIGN_OR_RETURN(worker.kv_memory_bytes, Bytes(node, "kv_memory"));
  const bool by_figures = node["gflops"] || node["gb_per_second"];
  if ((node["gpu"] ? 1 : 0) + (by_figures ? 1 : 0) + (node["profile"] ? 1 : 0) != 1) {
    return Wrong(node, "a worker's speed is one of: gpu; gflops and gb_per_second; profile");
  }
  if (node["gpu"]) {
    RETURN_IF_ERROR(ReadGpu(node, worker));
  } else if (node["profile"]) {
    RETURN_IF_ERROR(ReadProfile(node["profile"], worker));
  } else {
    ASSIGN_OR_RETURN(const double gflops, Number(node, "gflops", 1e-3, 1e9, 0));
    ASSIGN_OR_RETURN(const double bandwidth, Number(node, "gb_per_second", 1e-3, 1e6, 0));
    if (gflops == 0 || bandwidth == 0) return Wrong(node, "gflops and gb_per_second go together");
    worker.speed = DeviceSpeed{gflops * 1e9, bandwidth * 1e9, 0};
  }
  for (int i = 0; i < static_cast<int>(count); ++i) {
    cluster.workers.push_back(worker);
    std::string& name = cluster.workers.back().name;
    if (name.empty()) name = absl::StrCat("worker ", cluster.workers.size() - 1);
    if (cluster.workers.size() > kMaxPlanWorkers) {
      return Wrong(node, absl::StrCat("more than ", kMaxPlanWorkers, " workers"));
    }
  }
  return absl::OkStatus();
}

absl::Status Reader::ReadLink(const YAML::Node& node, PlannedCluster& cluster) const {
  RETURN_IF_ERROR(OnlyKeys(node, {"latency", "gb_per_second"}));
  if (const YAML::Node latency = node["latency"]) {
    absl::Duration duration;
    if (!latency.IsScalar() || !absl::ParseDuration(latency.Scalar(), &duration) ||
        duration < absl::ZeroDuration() || duration > absl::Seconds(10)) {
      return Wrong(latency, "latency: expected a time such as 100us or 2ms");
    }
    cluster.link_seconds = absl::ToDoubleSeconds(duration);
  }
  ASSIGN_OR_RETURN(const double speed,
                   Number(node, "gb_per_second", 1e-6, 1e5, cluster.link_bytes_per_second * 1e-9));
  cluster.link_bytes_per_second = speed * 1e9;
  return absl::OkStatus();
}

absl::StatusOr<PlannedCluster> Reader::Read(const YAML::Node& root) const {
  RETURN_IF_ERROR(OnlyKeys(root, {"workers", "link"}));
  PlannedCluster cluster;
  const YAML::Node workers = root["workers"];
  if (!workers || !workers.IsSequence() || workers.size() == 0)
    return Wrong(root, "expected a list of workers");
  for (const YAML::Node& worker : workers) RETURN_IF_ERROR(ReadWorker(worker, cluster));
  if (root["link"]) RETURN_IF_ERROR(ReadLink(root["link"], cluster));
  return cluster;
}

void AppendPoints(const char* key, const std::vector<ProfilePoint>& points, std::string& out) {
  absl::StrAppend(&out, "      ", key, ":\n");
  for (const ProfilePoint& point : points) {
    absl::StrAppend(&out, absl::StrFormat("        - [%d, %d, %d, %.9g]\n", point.rows, point.sequences,
                                          point.context, point.seconds));
  }
}

}  // namespace

absl::StatusOr<PlannedCluster> ParseCluster(const std::string& text, const std::string& name) {
  try {
    return Reader(name).Read(YAML::Load(text));
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ":", error.mark.line + 1, ":", error.mark.column + 1, ": ", error.msg));
  }
}

absl::StatusOr<PlannedCluster> ReadClusterFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::stringstream text;
  text << file.rdbuf();
  return ParseCluster(text.str(), path);
}

absl::StatusOr<PlannedCluster> ClusterOfGpus(const std::string& text) {
  // As a cluster file says it, so that both know the same names and refuse the same.
  std::string workers;
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    const std::pair<absl::string_view, absl::string_view> gpu = absl::StrSplit(part, absl::MaxSplits(':', 1));
    uint32_t count = 1;
    const bool named =
        !gpu.first.empty() && gpu.first.find_first_not_of(kNameCharacters) == std::string::npos;
    if (!named || (part.find(':') != part.npos && !absl::SimpleAtoi(gpu.second, &count))) {
      return absl::InvalidArgumentError(absl::StrCat("--gpus: '", part, "' is not a name, or NAME:COUNT"));
    }
    absl::StrAppend(&workers, "  - {gpu: ", gpu.first, ", count: ", count, "}\n");
  }
  return ParseCluster(absl::StrCat("workers:\n", workers), "--gpus");
}

absl::Status WriteClusterFile(const PlannedCluster& cluster, const std::string& path) {
  std::string out =
      "# Speeds that workers measured when they joined, for millrace plan --cluster.\nworkers:\n";
  for (const PlannedWorker& worker : cluster.workers) {
    absl::StrAppend(&out, "  - name: \"", worker.name, "\"\n    memory: ", worker.memory_bytes,
                    "\n    kv_memory: ", worker.kv_memory_bytes, "\n");
    if (worker.speed.has_value()) {
      absl::StrAppend(&out, "    gflops: ", worker.speed->flops_per_second * 1e-9,
                      "\n    gb_per_second: ", worker.speed->bytes_per_second * 1e-9, "\n");
    }
    if (!worker.profile.has_value()) continue;
    absl::StrAppend(
        &out, absl::StrFormat("    profile:\n      layer_elements: %.17g\n      overhead_seconds: %.9g\n",
                              worker.profile->layer_elements, worker.profile->overhead_seconds));
    AppendPoints("layer", worker.profile->layer, out);
    AppendPoints("head", worker.profile->head, out);
  }
  absl::StrAppend(&out, absl::StrFormat("link: {latency: %.9gs, gb_per_second: %.9g}\n", cluster.link_seconds,
                                        cluster.link_bytes_per_second * 1e-9));
  std::ofstream file(path);
  file << out;
  file.close();
  if (!file) return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be written"));
  return absl::OkStatus();
}

}  // namespace millrace::cli
