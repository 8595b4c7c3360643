"""A model that lies on no node, on the chart's own pods: the coordinator's init container downloads it, and workers are sent their part."""
import hashlib

import yaml

import chart
from pod_runner.cluster import Cluster, load
from test_pods import IMAGE, PATIENCE, check_golden_tokens, component, coordinator, pod_object, values


def installed(cluster, folder, real_model, url_port):
    """The chart with a model that a web server in the cluster has."""
    web = cluster.start_pod(pod_object("web", [
        "python3", "-m", "http.server", str(url_port), "--directory", "/srv"], volumeMounts=[{"name": "srv", "mountPath": "/srv", "readOnly": True}],
        readinessProbe={"tcpSocket": {"port": url_port}, "periodSeconds": 1},
        pod={"volumes": [{"name": "srv", "hostPath": {"path": str(real_model.parent)}}]}))
    cluster.wait(lambda: web.ready, "the web server answers")
    given = values(real_model)
    given["model"] = {"push": True, "download": {"url": f"http://{web.address}:{url_port}/{real_model.name}",
                                                 "sha256": hashlib.sha256(real_model.read_bytes()).hexdigest()}}
    (folder / "values.yaml").write_text(yaml.safe_dump(given))
    done = chart.run("helm", "template", "m", chart.CHART, "--values", folder / "values.yaml")
    cluster.apply(load(done.stdout))
    cluster.wait_rolled_out(PATIENCE)


def downloads(cluster, pod):
    return "".join(path.read_text(errors="replace") for path in cluster.logs(pod)).count("downloading http://")


def test_a_downloaded_and_pushed_model_serves(tmp_path, real_model, golden):
    with Cluster(tmp_path / "cluster", image=lambda reference: IMAGE, backoff=1.0) as cluster:
        installed(cluster, tmp_path, real_model, 8000)
        check_golden_tokens(cluster, golden["capital"])
        workers = component(cluster, "worker")
        assert downloads(cluster, coordinator(cluster)) == 1 and len(workers) == 2
        for worker in workers:
            assert downloads(cluster, worker) == 0
            code, listed = cluster.execute(worker, ["find", "/var/cache/millrace", "-type", "f", "-size", "+1M"])
            assert code == 0 and "/var/cache/millrace/" in listed, listed
            assert cluster.execute(worker, ["ls", "/models"])[0] != 0, "workers have no model volume"
        # Read-only, whoever asks.
        assert cluster.execute(coordinator(cluster), ["touch", "/models/x"])[0] != 0
