"""The script of the container that downloads a model, run as it is rendered, but for the folder."""
import hashlib
import http.server
import os
import subprocess
import threading

import pytest

import chart

DATA = os.urandom(300_000)
SHA = hashlib.sha256(DATA).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves DATA with ranges, as web servers do; /breaks ends each answer after 100 kB, /stalls says no more then."""
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        begin = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
        self.server.begins.append(begin)
        if self.path == "/none" or begin >= len(DATA):
            self.send_response(404 if self.path == "/none" else 416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(DATA) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(DATA) - 1}/{len(DATA)}")
        self.end_headers()
        self.wfile.write(DATA[begin:begin + 100_000] if self.path in ("/breaks", "/stalls") else DATA[begin:])
        if self.path == "/stalls":
            self.server.over.wait()
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    it = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    it.begins, it.over = [], threading.Event()
    threading.Thread(target=it.serve_forever, daemon=True).start()
    yield it
    it.over.set()
    it.shutdown()


@pytest.fixture
def download(server, tmp_path):
    def run(path="/m", sha=SHA, change=lambda script: script):
        url = f"http://127.0.0.1:{server.server_address[1]}{path}"
        objects = chart.render("--set", f"model.download.url={url},model.download.sha256={sha}")
        (container,) = chart.only(objects, "Deployment")["spec"]["template"]["spec"]["initContainers"]
        env = {e["name"]: e["value"] for e in container["env"]}
        shell, flags, script = container["command"]
        assert "/models/" in script
        return subprocess.run([shell, flags, change(script.replace("/models/", f"{tmp_path}/"))], env={"PATH": os.environ["PATH"], **env},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    return run


def test_a_model_is_downloaded_once(download, server, tmp_path):
    assert download().returncode == 0 and (tmp_path / "model.gguf").read_bytes() == DATA
    again = download()
    assert again.returncode == 0 and "the model is there" in again.stdout and server.begins == [0]
    assert os.listdir(tmp_path) == ["model.gguf"]


def test_another_file_is_never_put_in_place(download, tmp_path):
    done = download(sha="b" * 64)
    assert done.returncode == 1 and f"the file's sha256 is {SHA}, expected {'b' * 64}: not used" in done.stdout
    assert os.listdir(tmp_path) == []
    # What lies there under the name is no better.
    (tmp_path / "model.gguf").write_bytes(b"old")
    assert download().returncode == 0 and (tmp_path / "model.gguf").read_bytes() == DATA


def test_what_broke_off_goes_on(download, server, tmp_path):
    for _ in range(5):
        done = download("/breaks")
        if done.returncode == 0:
            break
        assert not (tmp_path / "model.gguf").exists()
    assert (tmp_path / "model.gguf").read_bytes() == DATA and 100_000 in server.begins and 200_000 in server.begins


def test_a_whole_part_is_taken_and_a_wrong_one_begun_anew(download, server, tmp_path):
    (tmp_path / "model.gguf.part").write_bytes(DATA)
    assert download().returncode == 0 and server.begins == []
    os.remove(tmp_path / "model.gguf")
    # Longer than the file: the server has nothing to add, and the next attempt does not meet it again.
    (tmp_path / "model.gguf.part").write_bytes(DATA + b"x")
    assert download().returncode != 0 and os.listdir(tmp_path) == []
    assert download().returncode == 0 and (tmp_path / "model.gguf").read_bytes() == DATA


def test_a_server_that_says_no_more_is_given_up(download, tmp_path):
    """And what has come is kept for the next attempt. The script's patience is shortened."""
    def hasty(script):
        assert " --speed-limit 1 --speed-time 60 " in script and " --retry 5 " in script
        return script.replace("--speed-limit 1 --speed-time 60", "--speed-limit 999999999 --speed-time 1").replace("--retry 5", "--retry 0")
    assert download("/stalls", change=hasty).returncode == 28 and (tmp_path / "model.gguf.part").read_bytes() == DATA[:100_000]
    assert download().returncode == 0 and (tmp_path / "model.gguf").read_bytes() == DATA


def test_a_file_that_is_not_there(download, tmp_path):
    done = download("/none")
    assert done.returncode == 22 and "404" in done.stdout and os.listdir(tmp_path) == []
