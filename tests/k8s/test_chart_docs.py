"""What the notes and the documents tell people to type."""
import json
import re
import shlex
import shutil
import sys

import pytest

import chart
from test_chart_rules import known_flags

PAGES = (chart.ROOT / "README.md", chart.ROOT / "docs" / "DEPLOY.md", chart.CHART / "README.md")


def typed(text):
    """The commands in a page's code blocks, as lists of words."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                yield shlex.split(line, comments=True)


def helm_commands():
    return [(page.name, words) for page in PAGES for words in typed(page.read_text()) if words[:1] == ["helm"]]


def test_pages_have_commands():
    assert {"install", "upgrade", "test"} <= {words[1] for _, words in helm_commands()} and len(helm_commands()) >= 6


@pytest.mark.parametrize("page,words", [case for case in helm_commands() if case[1][1] in ("install", "upgrade")], ids=str)
def test_installing_as_the_pages_say_renders(page, words):
    words = [w for w in words[2:] if w != "--install"]
    chart.run("helm", "template", *words, cwd=chart.ROOT)


def notes(folder, *args):
    """What helm prints after an install: `template` leaves it out, so that a copy of the chart has it in a ConfigMap."""
    copy = folder / "chart"
    if not copy.exists():
        shutil.copytree(chart.CHART, copy)
        templates = copy / "templates"
        text = (templates / "NOTES.txt").read_text()
        (templates / "NOTES.txt").unlink()
        (templates / "_notes.tpl").write_text('{{- define "the.notes" -}}\n' + text + "{{- end -}}\n")
        (templates / "notes.yaml").write_text('apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\n'
                                              'data: {text: {{ include "the.notes" . | toJson }}}\n')
    done = chart.run("helm", "template", "m", copy, "--namespace", "ns", *args, "--show-only", "templates/notes.yaml")
    return json.loads(re.search(r"^data: \{text: (.*)\}$", done.stdout, re.MULTILINE).group(1))


@pytest.mark.parametrize("name", ["cpu", "groups", "tls-cert-manager", "lws", "mpijob"])
def test_notes_can_be_pasted(name, tmp_path, protos):
    text = notes(tmp_path, *chart.matrix()[name])
    objects = chart.render(*chart.matrix()[name])
    lines = [shlex.split(line.strip()) for line in text.splitlines() if line.startswith("  ")]
    lines += [shlex.split(text.split("Why a pod is not ready: ")[1].splitlines()[0])]
    services = {o["metadata"]["name"] for o in objects if o["kind"] == "Service"}
    assert any(words[0] == "kubectl" for words in lines)
    for words in lines:
        if words[0] == "kubectl":
            assert words[1:3] == ["--namespace", "ns"]
            if "--selector" in words:
                wanted = dict(pair.split("=") for pair in words[words.index("--selector") + 1].split(","))
                selected = [pod for pod in chart.pods(objects) if wanted.items() <= pod.metadata["labels"].items()]
                assert wanted["app.kubernetes.io/instance"] == "m" and selected, words
                assert not any(pod.where.startswith("Pod/") for pod in selected), "helm test's pod, too"
            for word in words:
                kind, _, named = word.partition("/")
                if kind == "service":
                    assert named in services
                elif kind == "deployment":
                    chart.only(objects, "Deployment", named)
        elif words[0] == "millrace":
            flags = {word for word in words if word.startswith("--")}
            assert flags <= known_flags("millrace", words[1]), words
        elif words[0] == "grpcurl":
            sys.path.insert(0, str(protos))
            from google.protobuf import json_format
            from millrace.v1 import inference_pb2
            request = json_format.Parse(words[words.index("-d") + 1], inference_pb2.GenerateRequest())
            assert request.stop.max_tokens == 20 and request.text
            assert words[-1] == "millrace.v1.Inference/Generate"
        else:
            assert words[:2] == ["helm", "test"], words
    assert ("TLS is off" in text) == (name in ("cpu", "groups", "lws"))
    assert ("keep one connection" in text) == (name in ("groups", "tls-cert-manager", "lws"))
    if name == "tls-cert-manager":
        assert "--tls-name m-millrace" in text and "get secret m-millrace-tls" in text and "-plaintext" not in text
