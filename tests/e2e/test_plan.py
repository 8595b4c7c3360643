"""`millrace plan`: on a cluster that runs, from what its workers measured, and on one that is only a file."""
import json
import subprocess

import pytest

import harness

EXAMPLES = harness.ROOT / "deploy" / "examples"


def plan(*args):
    done = subprocess.run([harness.BIN / "millrace", "plan", *map(str, args)], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=harness.PATIENCE)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.yaml")))
def test_every_example_can_be_planned_with(example):
    code, out, err = plan("--shape", "smollm2-1.7b", "--cluster", EXAMPLES / example, "--json")
    assert code == 0, err
    assert all(choice["decode_tokens_per_second"] > 0 for choice in json.loads(out)["choices"] if choice["fits"])


def test_a_running_cluster_is_predicted_as_it_is(real_model, logs, tmp_path):
    with harness.Cluster(real_model, logs, stages=2, coordinator=["--context", 512]) as cluster:
        stages = cluster.client.load().stages
        assert all(stage.predicted_seconds > 0 for stage in stages)
        saved = tmp_path / "cluster.yaml"
        code, out, err = plan("--model", real_model, "--server", cluster.address, "--context", 512, "--json",
                              "--save-cluster", saved)
        assert code == 0, err
        found = json.loads(out)
        assert not found["estimated"]
        (choice,) = found["choices"]
        assert [place["num_layers"] for place in choice["placement"]] == [stage.num_layers for stage in stages]
        # Workers hold packed matrices, which are padded a little.
        assert [place["weight_bytes"] for place in choice["placement"]] == pytest.approx(
            [stage.weight_bytes for stage in stages], rel=0.01)
        assert 0 <= choice["bubble"] < 0.5
    # Without the cluster, too, and then for any number of stages.
    code, out, err = plan("--model", real_model, "--cluster", saved, "--context", 512, "--json")
    assert code == 0, err
    assert {choice["stages"] for choice in json.loads(out)["choices"]} == {1, 2}


@pytest.mark.parametrize("args, code, words", [
    (["--shape", "llama-9", "--cluster", EXAMPLES / "two-a100.yaml"], 2, "known: Llama-2-7B"),
    (["--shape", "gpt-3-175b", "--context", 2048, "--cluster", EXAMPLES / "two-a100.yaml"], 1, "workers of 74.5 GiB would do"),
    (["--shape", "llama-2-7b", "--cluster", "/nonexistent.yaml"], 2, "/nonexistent.yaml: cannot be read"),
    (["--shape", "llama-2-7b"], 2, "one of --cluster F.yaml, --gpus NAME:N and --server HOST:PORT"),
    (["--shape", "llama-2-7b", "--kv-type", "f8"], 2, "--kv-type: 'f8' is not auto, f32, f16 or int8"),
    (["--cluster", EXAMPLES / "two-a100.yaml"], 2, "one of --model F.gguf and --shape NAME"),
])
def test_what_is_wrong_is_one_line_and_an_exit_code(args, code, words):
    got, out, err = plan(*args)
    assert (got, out) == (code, "")
    assert words in err and err.count("\n") == 1


@pytest.mark.parametrize("kv_type, bytes_per_head", [("auto", 128), ("f16", 128), ("f32", 256), ("int8", 68)])
def test_keys_and_values_take_what_their_type_takes(real_model, kv_type, bytes_per_head):
    code, out, err = plan("--model", real_model, "--cluster", EXAMPLES / "two-a100.yaml", "--kv-type", kv_type, "--json")
    assert code == 0, err
    # Keys and values of 30 layers with 3 KV heads of 64 elements.
    assert json.loads(out)["kv_bytes_per_token"] == 2 * 30 * 3 * bytes_per_head
