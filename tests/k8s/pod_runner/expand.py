"""What the kubelet computes for a container before it starts: $(VAR) references, environment, fields of the pod. Pure."""
import math
import re

_REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")
_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")


class BadObject(ValueError):
    """An object that the kubelet would refuse, or a field of it that the runner does not play."""


def expand(text, variables):
    """Replaces $(NAME) for known names; others stay as they are, and $$ stands for one dollar sign."""
    def replace(match):
        if match.group(0) == "$$":
            return "$"
        return variables.get(match.group(1), match.group(0))
    return _REFERENCE.sub(replace, text)


_SCALES = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity(text):
    """A Kubernetes quantity such as 500m or 2Gi as a number."""
    match = re.fullmatch(r"([0-9.]+)(m|k|M|G|T|Ki|Mi|Gi|Ti)?", str(text))
    if not match:
        raise BadObject(f"'{text}' is no quantity")
    return float(match.group(1)) * _SCALES[match.group(2) or ""]


def field(pod, path):
    """The value of a fieldRef. `pod`: the pod object with `status`."""
    match = re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path)
    if match:
        return str(pod["metadata"].get(match.group(1), {}).get(match.group(2), ""))
    simple = {
        "metadata.name": lambda: pod["metadata"]["name"],
        "metadata.namespace": lambda: pod["metadata"]["namespace"],
        "metadata.uid": lambda: pod["metadata"]["uid"],
        "spec.nodeName": lambda: pod["spec"].get("nodeName", ""),
        "spec.serviceAccountName": lambda: pod["spec"].get("serviceAccountName", "default"),
        "status.podIP": lambda: pod["status"]["podIP"],
        "status.podIPs": lambda: pod["status"]["podIP"],
        "status.hostIP": lambda: pod["status"]["hostIP"],
    }
    if path not in simple:
        raise BadObject(f"fieldRef {path}: no such field")
    return simple[path]()


def resource_field(container, reference):
    """The value of a resourceFieldRef, rounded up to whole divisors; 0 where no limit is set."""
    kind, _, name = reference["resource"].partition(".")
    value = container.get("resources", {}).get(kind, {}).get(name)
    if value is None:
        return "0"
    divisor = quantity(reference.get("divisor") or "1") or 1
    return str(math.ceil(quantity(value) / divisor))


def _from_key(kind, reference, data):
    """One key of a ConfigMap or Secret; None where it is optional and missing."""
    found = data(kind, reference["name"])
    if found is None or reference["key"] not in found:
        if reference.get("optional"):
            return None
        raise BadObject(f"{kind} {reference['name']} has no key '{reference['key']}'" if found is not None
                        else f"{kind} {reference['name']} does not exist")
    return found[reference["key"]].decode()


def _value(entry, container, pod, data):
    source = entry.get("valueFrom")
    if source is None:
        return None
    if "fieldRef" in source:
        return field(pod, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        return resource_field(container, source["resourceFieldRef"])
    if "configMapKeyRef" in source:
        return _from_key("ConfigMap", source["configMapKeyRef"], data)
    if "secretKeyRef" in source:
        return _from_key("Secret", source["secretKeyRef"], data)
    raise BadObject(f"env {entry['name']}: unknown source {sorted(source)}")


def environment(container, pod, data, base):
    """The container's environment as a dict.

    `data(kind, name)` gives the bytes of a ConfigMap or Secret by key, or None. `base`: the image's variables and the service
    variables, over which those of the container go. A value may refer to variables named before it.
    """
    result = dict(base)
    for source in container.get("envFrom", ()):
        kind, reference = ("ConfigMap", source["configMapRef"]) if "configMapRef" in source else ("Secret", source["secretRef"])
        found = data(kind, reference["name"])
        if found is None:
            if reference.get("optional"):
                continue
            raise BadObject(f"{kind} {reference['name']} does not exist")
        for key, value in found.items():
            if _NAME.fullmatch(key):
                result[source.get("prefix", "") + key] = value.decode()
    for entry in container.get("env", ()):
        value = _value(entry, container, pod, data) if "valueFrom" in entry else expand(str(entry.get("value", "")), result)
        if value is not None:
            result[entry["name"]] = value
    return result


def command_line(container, image_command, variables):
    """command and args as the kubelet and the runtime put them together with the image's entrypoint and arguments."""
    command = [expand(str(part), variables) for part in container.get("command", ())]
    args = [expand(str(part), variables) for part in container.get("args", ())]
    entrypoint, default = image_command
    if command:
        return command + args
    line = list(entrypoint) + (args or list(default))
    if not line:
        raise BadObject(f"container {container['name']}: neither it nor its image says what to run")
    return line


def service_variables(services):
    """The variables that the kubelet gives for each Service with a cluster IP: {name: (ip, [(port name, port, protocol)])}."""
    result = {}
    for name, (address, ports) in services.items():
        prefix = name.upper().replace("-", "_")
        result[f"{prefix}_SERVICE_HOST"] = address
        for index, (port_name, port, protocol) in enumerate(ports):
            url = f"{protocol.lower()}://{address}:{port}"
            if index == 0:
                result[f"{prefix}_SERVICE_PORT"] = str(port)
                result[f"{prefix}_PORT"] = url
            if port_name:
                result[f"{prefix}_SERVICE_PORT_{port_name.upper().replace('-', '_')}"] = str(port)
            each = f"{prefix}_PORT_{port}_{protocol.upper()}"
            result.update({each: url, f"{each}_PROTO": protocol.lower(), f"{each}_PORT": str(port), f"{each}_ADDR": address})
    return result
