"""Volumes of a pod as folders of this machine, which containers get by bind mounts."""
import base64
import os
import pathlib
import shutil

from .expand import BadObject, field

SUPPORTED = ("emptyDir", "configMap", "secret", "hostPath", "persistentVolumeClaim", "projected", "downwardAPI", "image")


def object_data(obj):
    """The bytes of a ConfigMap or Secret by key."""
    if obj["kind"] == "ConfigMap":
        data = {key: str(value).encode() for key, value in (obj.get("data") or {}).items()}
        data.update({key: base64.b64decode(value) for key, value in (obj.get("binaryData") or {}).items()})
        return data
    data = {key: base64.b64decode(value) for key, value in (obj.get("data") or {}).items()}
    data.update({key: str(value).encode() for key, value in (obj.get("stringData") or {}).items()})
    return data


def _picked(data, source, what):
    """{path: (bytes, mode)} of what `items` names, or of all keys."""
    default = source.get("defaultMode", 0o644)
    if not source.get("items"):
        return {key: (value, default) for key, value in data.items()}
    result = {}
    for item in source["items"]:
        if item["key"] not in data:
            if source.get("optional"):
                continue
            raise BadObject(f"{what} has no key '{item['key']}'")
        result[item["path"]] = (data[item["key"]], item.get("mode", default))
    return result


class Volumes:
    """The volumes of one pod. `data(kind, name)`: bytes by key or None. `claims`: folders of PersistentVolumeClaims;
    `images`: folders that stand for OCI image volumes."""

    def __init__(self, pod, folder, data, claims, images):
        self._pod, self._folder, self._data = pod, pathlib.Path(folder), data
        self._claims, self._images = claims, images
        self._group = pod["spec"].get("securityContext", {}).get("fsGroup")
        self._paths, self._written = {}, {}
        for volume in pod["spec"].get("volumes", ()):
            self._paths[volume["name"]] = self._prepare(volume)

    def _prepare(self, volume):
        name = volume["name"]
        kinds = [kind for kind in SUPPORTED if kind in volume]
        if len(kinds) != 1:
            raise BadObject(f"volume {name}: the runner does not play {sorted(set(volume) - {'name'})}")
        kind, source = kinds[0], volume[kinds[0]] or {}
        path = self._folder / name
        if kind == "hostPath":
            return self._host_path(name, source)
        if kind == "persistentVolumeClaim":
            if source["claimName"] not in self._claims:
                raise BadObject(f"volume {name}: there is no PersistentVolumeClaim {source['claimName']}")
            return self._shared(pathlib.Path(self._claims[source["claimName"]]))
        if kind == "image":
            if source["reference"] not in self._images:
                raise BadObject(f"volume {name}: no folder stands for the image {source['reference']}")
            return self._images[source["reference"]]
        path.mkdir(parents=True)
        if kind == "emptyDir":
            path.chmod(0o777)
            return self._shared(path)
        self._write(path, name, self._content(kind, source, name))
        return path

    def _host_path(self, name, source):
        path, kind = pathlib.Path(source["path"]), source.get("type", "")
        if kind == "DirectoryOrCreate":
            path.mkdir(parents=True, exist_ok=True)
        good = {"Directory": path.is_dir, "DirectoryOrCreate": path.is_dir, "File": path.is_file}.get(kind, path.exists)
        if not good():
            raise BadObject(f"volume {name}: hostPath {path} is no {kind or 'path'} of this node")
        return path

    def _shared(self, path):
        """Lets fsGroup write, as the kubelet does."""
        if self._group is not None:
            for entry in (path, *path.rglob("*")):
                os.chown(entry, -1, self._group, follow_symlinks=False)
            path.chmod(path.stat().st_mode | 0o2070)
        return path

    def _content(self, kind, source, name):
        if kind == "projected":
            result = {}
            for part in source["sources"]:
                (inner, inner_source), = part.items()
                if inner not in ("configMap", "secret", "downwardAPI"):
                    raise BadObject(f"volume {name}: the runner does not project {inner}")
                result.update(self._content(inner, {"defaultMode": source.get("defaultMode", 0o644), **inner_source}, name))
            return result
        if kind == "downwardAPI":
            mode = source.get("defaultMode", 0o644)
            return {item["path"]: (field(self._pod, item["fieldRef"]["fieldPath"]).encode(), item.get("mode", mode))
                    for item in source["items"]}
        object_kind = "ConfigMap" if kind == "configMap" else "Secret"
        object_name = source.get("secretName") or source.get("name")
        data = self._data(object_kind, object_name)
        if data is None:
            if source.get("optional"):
                return {}
            raise BadObject(f"volume {name}: {object_kind} {object_name} does not exist")
        return _picked(data, source, f"{object_kind} {object_name}")

    def _write(self, path, name, content):
        """Writes a new version beside the old one and moves one link, so that readers see all of it or nothing."""
        number = self._written.get(name, (0, None))[0] + 1
        version = path / f"..{number}"
        for file, (value, mode) in content.items():
            target = version / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(value)
            if self._group is not None:
                os.chown(target, -1, self._group)
                mode |= 0o440
            target.chmod(mode)
        version.mkdir(exist_ok=True)
        link = path / "..new"
        link.symlink_to(version.name)
        link.rename(path / "..data")
        for top in {pathlib.PurePath(file).parts[0] for file in content}:
            if not (path / top).is_symlink():
                (path / top).symlink_to(f"..data/{top}")
        for old in path.glob("..[0-9]*"):
            if old != version:
                shutil.rmtree(old)
        self._written[name] = (number, content)

    def refresh(self):
        """Brings changed ConfigMaps and Secrets into the volumes of a running pod."""
        for volume in self._pod["spec"].get("volumes", ()):
            kind = next((one for one in ("configMap", "secret", "projected") if one in volume), None)
            if kind is None:
                continue
            content = self._content(kind, volume[kind], volume["name"])
            if content != self._written[volume["name"]][1]:
                self._write(self._folder / volume["name"], volume["name"], content)

    def mounts(self, container):
        """The bind mounts of a container, as the shim takes them."""
        result = []
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in self._paths:
                raise BadObject(f"container {container['name']}: there is no volume {mount['name']}")
            source = pathlib.Path(self._paths[mount["name"]])
            if mount.get("subPath"):
                source = source / mount["subPath"]
                if not source.exists():
                    source.mkdir(parents=True)
            result.append({"source": str(source), "target": mount["mountPath"].rstrip("/"),
                           "read_only": bool(mount.get("readOnly"))})
        return result

    def remove(self):
        shutil.rmtree(self._folder, ignore_errors=True)
