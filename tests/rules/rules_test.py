"""The rule scripts find what they are for. Run by pytest."""
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import forbidden_text  # noqa: E402
import kernel_report  # noqa: E402
import layering  # noqa: E402
import proto_rules  # noqa: E402
import size_bars  # noqa: E402
import sources  # noqa: E402


@pytest.mark.parametrize("path, line", [
    ("kernels/matmul.h", '#include "common/ids.h"'),
    ("kernels/matmul.h", '#include "absl/container/flat_hash_map.h"'),
    ("kernels/matmul.h", '#include <grpcpp/grpcpp.h>'),
    ("common/log.cc", '#include "model/gguf_file.h"'),
    ("common/log.cc", '#include <grpcpp/grpcpp.h>'),
    ("common/log.cc", '#  include "millrace/v1/cluster.pb.h"'),
    ("model/tokenizer.cc", '#include "kernels/matmul.h"'),
    ("model/tokenizer.cc", '#include <yaml-cpp/yaml.h>'),
    ("worker/stage/stage_model.cc", '#include "worker/control/worker.h"'),
    ("worker/stage/stage_model.cc", '#include "grpcpp/grpcpp.h"'),
    ("worker/control/worker.cc", '#include "coordinator/scheduler/scheduler.h"'),
    ("coordinator/cluster/cluster.cc", '#include "worker/stage/sampler.h"'),
    ("coordinator/cluster/cluster.cc", '#include "kernels/matmul.h"'),
    ("coordinator/scheduler/scheduler.h", '#include "coordinator/pipeline/engine.h"'),
    ("coordinator/scheduler/scheduler.h", '#include "millrace/v1/inference.pb.h"'),
    ("coordinator/scheduler/scheduler.h", '#include "model/tokenizer.h"'),
    ("coordinator/scheduler/scheduler.h", '#include <thread>'),
    ("coordinator/scheduler/scheduler.h", '#include "absl/time/clock.h"'),
    ("coordinator/scheduler/scheduler.cc", 'auto now = std::chrono::steady_clock::now();'),
    ("coordinator/scheduler/scheduler.cc", 'auto now = absl::Now();'),
    ("coordinator/coordinator.cc", '#include "coordinator/coordinator_main.cc"'),
    ("coordinator/pipeline/engine.cc", '#include "grpcpp/grpcpp.h"'),
    ("coordinator/pipeline/engine.cc", '#include "millrace/v1/cluster.grpc.pb.h"'),
    ("coordinator/pipeline/engine.cc", '#include "coordinator/frontend/frontend.h"'),
    ("coordinator/frontend/frontend.cc", '#include "coordinator/cluster/cluster_state.h"'),
    ("coordinator/cluster/cluster_state.cc", '#include "coordinator/frontend/frontend.h"'),
    ("cli/chat.cc", '#include "coordinator/coordinator.h"'),
    ("cli/chat.cc", '#include "../common/ids.h"'),
    ("common/log.h", '#include <gtest/gtest.h>'),
    ("somewhere/else.cc", ""),
    ("worker/device/device.h", "#include <cuda_runtime.h>"),
    ("worker/control/worker.cc", '#include "kernels/cuda/cuda_backend.h"'),
    ("worker/device/cuda_library.cc", "#include <nccl.h>"),
    ("kernels/backend.h", "#include <cublasLt.h>"),
])
def test_layering_flags(path, line):
    assert len(layering.check_text(path, "// A file.\n" + line + "\n")) == 1


@pytest.mark.parametrize("path, line", [
    ("kernels/matmul.h", '#include <immintrin.h>'),
    ("kernels/matmul.h", '#include "absl/types/span.h"'),
    ("common/transport/hop_sender.cc", '#include <grpcpp/grpcpp.h>'),
    ("worker/stage/stage_model.cc", '#include "worker/kv/kv_cache.h"'),
    ("worker/control/worker.cc", '#include "millrace/v1/cluster.grpc.pb.h"'),
    ("coordinator/pipeline/engine.cc", '#include "coordinator/scheduler/scheduler.h"'),
    ("coordinator/pipeline/engine.cc", '#include "millrace/v1/cluster.pb.h"'),
    ("coordinator/coordinator.cc", '#include "coordinator/cluster/cluster_controller.h"'),
    ("coordinator/scheduler/scheduler.cc", '// steady_clock is what the engine reads'),
    ("coordinator/scheduler/scheduler.cc", '// #include <thread>'),
    ("deploy/mpi/millrace_mpi_main.cc", '#include "worker/control/worker.h"'),
    ("tests/unit/x_test.cc", '#include "worker/control/worker.h"'),
    ("kernels/cuda/matmul.cu", "#include <cuda_fp16.h>"),
    ("worker/device/cuda/nccl_collective.cc", "#include <nccl.h>"),
    ("worker/control/stage_backends.h", '#include "worker/device/cuda_library.h"'),
])
def test_layering_accepts(path, line):
    assert layering.check_text(path, line + "\n") == []


def function(lines, head="int F(int a)"):
    return head + " {\n" + "  a++;\n" * (lines - 2) + "}\n"


@pytest.mark.parametrize("head", [
    "int F(int a)",
    "void Klass::Method() const",
    "Klass::Klass(int a, std::vector<int> b)\n    : a_(a), b_{std::move(b)}",
    "template <typename T>\nauto G(T t) -> std::vector<T>",
    "void H() ABSL_LOCKS_EXCLUDED(mutex_)",
    "bool operator==(const A& a, const B& b)",
    "TEST(Suite, SaysSo)",
    "Klass::~Klass()",
])
def test_size_bars_measures_functions(head):
    limit = size_bars.MAX_FUNCTION_LINES
    lines_of_head = head.count("\n")
    assert size_bars.check_text("common/x.cc", function(limit - lines_of_head, head)) == []
    assert len(size_bars.check_text("common/x.cc", function(limit + 1 - lines_of_head, head))) == 1


def test_size_bars_sees_members_of_classes_and_namespaces():
    text = "namespace a {\nclass B : public C {\n public:\n" + function(90) + "};\n}  // namespace a\n"
    assert [(line, "90 lines" in what) for _, line, what in size_bars.check_text("common/x.h", text)] == [(4, True)]


def test_size_bars_ignores_braces_in_text_and_long_types():
    text = 'const char* s = "{{{"; // {\nchar c = \'{\';\nauto r = R"x(\n{\n)x";\n' + "enum E {\n" + "  kA,\n" * 100 + "};\n"
    assert size_bars.check_text("common/x.cc", text) == []


def test_size_bars_counts_a_lambda_for_its_function():
    text = "void F() {\n  auto f = [&](int a) {\n" + "    a++;\n" * 90 + "  };\n}\n"
    assert [what.split()[0] for _, _, what in size_bars.check_text("common/x.cc", text)] == ["F"]


def test_size_bars_flags_parameters_and_files():
    six = "void F(int a, std::map<int, int> b, int c, int d, int e, int f) {\n}\n"
    assert len(size_bars.check_text("common/x.cc", six)) == 1
    assert size_bars.check_text("common/x.cc", six.replace(", int f", "")) == []
    assert size_bars.check_text("tests/x.cc", six.replace("F(", "ncclSend(")) == []
    assert size_bars.check_text("common/x.cc", "\n" * 500) == []
    assert len(size_bars.check_text("common/x.cc", "\n" * 501)) == 1


GOOD_PROTO = """
service S {
  // Does a thing to the world. INVALID_ARGUMENT: the thing is wrong; do not retry.
  rpc Do(A) returns (B);
}
enum Colour {
  COLOUR_UNSPECIFIED = 0;
  COLOUR_RED = 1;
}
"""


@pytest.mark.parametrize("good, bad", [
    ("COLOUR_UNSPECIFIED = 0", "COLOUR_RED_FIRST = 0"),
    ("COLOUR_UNSPECIFIED = 0", "COLOUR_UNSPECIFIED = 1"),
    ("COLOUR_RED = 1", "RED = 1"),
    ("  // Does a thing to the world. INVALID_ARGUMENT: the thing is wrong; do not retry.\n", ""),
    ("INVALID_ARGUMENT: the thing is wrong; do not retry.", "And that is all there is to say about it."),
])
def test_proto_rules_flag(good, bad):
    assert proto_rules.check_text("x/inference.proto", GOOD_PROTO) == []
    assert len(proto_rules.check_text("x/inference.proto", GOOD_PROTO.replace(good, bad))) == 1


def test_proto_rules_flag_a_number_used_twice_even_across_a_oneof():
    text = "message M {\n  int32 a = 1;\n  oneof o {\n    int32 b = 2;\n    int32 c = 1;\n  }\n}\n"
    assert len(proto_rules.check_text("x/cluster.proto", text)) == 1


@pytest.mark.parametrize("line", [
    "see /ro" + "ot/models/a.gguf",
    "TO" + "DO: later",
    "TEST(A, DISABLED" + "_B)",
    "GTEST" + "_SKIP();",
    "index-url = https://py" + "pi.org/simple",
])
def test_forbidden_text_flags(line):
    assert len(forbidden_text.check_text("common/x.cc", "fine\n" + line + "\n")) == 1


def test_forbidden_text_accepts_ordinary_lines():
    assert forbidden_text.check_text("common/x.cc", "the root of the tree, /proc/self/root\nto do it\n") == []


def test_strip_cpp_keeps_line_numbers():
    text = 'a /* x\ny */ b "q // r" // s\nc = 1\'000\'000;'
    assert sources.strip_cpp(text).split("\n") == ["a     ", "     b              ", "c = 1'000'000;"]


def test_kernel_report_finds_spills():
    text = """ptxas info    : Compiling entry function '_Z1Kv' for 'sm_80'
ptxas info    : Function properties for _Z1Kv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 128 bytes smem, 364 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1Kv' for 'sm_100a'
ptxas info    : Function properties for _Z1Kv
    8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 255 registers
"""
    first, second = kernel_report.parse(text)
    assert (first["target"], first["registers"], first["shared"], kernel_report.wrong(first)) == ("sm_80", 40, 128, False)
    assert (second["stack"], second["spills"], kernel_report.wrong(second)) == (8, 16, True)
    assert kernel_report.parse("nothing") == []


def test_kernel_report_keeps_template_arguments():
    assert kernel_report.without_parameters("K<(int)3, F<4> >(float*, int)") == "K<(int)3, F<4> >"
