"""Whether an object is what the API of a version of Kubernetes takes, to the last field."""
import functools
import json
import pathlib

import jsonschema
import kubernetes_validate
import kubernetes_validate.utils

import chart

SCHEMAS = pathlib.Path(__file__).parent / "schemas"
# It reads megabytes for each object otherwise.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


@functools.cache
def custom():
    """Validators of the custom kinds, by (apiVersion, kind)."""
    found = {}
    for path in SCHEMAS.glob("*.json"):
        schema = json.loads(path.read_text())
        jsonschema.Draft7Validator.check_schema(schema)
        found[schema["properties"]["apiVersion"]["const"], schema["properties"]["kind"]["const"]] = jsonschema.Draft7Validator(schema)
    return found


def _place(error):
    return ".".join(str(part) for part in error.absolute_path) + ": " + error.message[:300]


def faults(obj, version):
    """What is wrong with it, one line each. A kind without a schema is a fault."""
    validator = custom().get((obj["apiVersion"], obj["kind"]))
    if validator is None:
        return _core_faults(json.dumps(obj, sort_keys=True), version)
    found = [_place(error) for error in validator.iter_errors(obj)]
    for where, template in [] if found else chart.templates(obj):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        found += [f"{where}: {fault}" for fault in _core_faults(json.dumps(pod, sort_keys=True), version)]
    return found


@functools.cache
def _core_faults(text, version):
    """Kept: values files have most objects in common."""
    try:
        kubernetes_validate.validate(json.loads(text), version, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        return [error.message]
    except kubernetes_validate.ValidationError as error:
        return [_place(error)]
    return []
