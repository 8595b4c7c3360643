#!/usr/bin/env python3
"""Checks the protos: enums start with NAME_UNSPECIFIED = 0, every RPC says what it does and which codes it answers with,
messages of the client API are commented, and field numbers are used once.

  proto_rules.py         exit 1 and one line per finding
"""
import re
import sys

from sources import ROOT, report, tracked

BLOCK = re.compile(r"^\s*(message|enum|service|oneof)\s+(\w+)\s*\{")
FIELD = re.compile(r"^\s*(?:repeated |optional )?(?:map<[^>]+>|[\w.]+)\s+(\w+)\s*=\s*(\d+)\s*(?:\[[^\]]*\])?;")
VALUE = re.compile(r"^\s*(\w+)\s*=\s*(-?\d+)\s*;")
RPC = re.compile(r"^\s*rpc\s+(\w+)")
CODE = re.compile(r"\b(OK always|INVALID_ARGUMENT|FAILED_PRECONDITION|PERMISSION_DENIED|UNAVAILABLE)\b")
# cluster.proto is between programs of one version; its fields are named for what they are.
CLIENT_API = ("inference.proto", "control.proto")


def snake(name):
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()


class _Block:
    def __init__(self, kind, name, comment, line):
        self.kind, self.name, self.comment, self.line = kind, name, comment, line
        self.numbers, self.fields, self.bare, self.first_value = {}, 0, [], True


def check_text(path, text):
    findings, stack, comment = [], [], []
    client_api = path.endswith(CLIENT_API)
    for number, raw in enumerate(text.split("\n"), 1):
        code, _, trailing = raw.partition("//")
        if not code.strip():
            comment = comment + [trailing] if trailing else []
            continue
        said = " ".join(comment + [trailing]).strip()
        block, rpc, field, value = (p.match(code) for p in (BLOCK, RPC, FIELD, VALUE))
        if block:
            stack.append(_Block(block.group(1), block.group(2), said, number))
            if block.group(1) == "oneof":
                stack[-1].numbers = stack[-2].numbers
            if code.count("}"):
                _close(path, stack.pop(), client_api, findings)
        elif rpc:
            if len(said) < 40 or not CODE.search(said):
                findings.append((path, number, f"rpc {rpc.group(1)} does not say its effect and its status codes"))
        elif stack and stack[-1].kind == "enum" and value:
            _check_value(path, number, stack[-1], value, findings)
        elif stack and field:
            _check_field(path, number, stack[-1], field, said, findings)
        elif "}" in code and stack:
            _close(path, stack.pop(), client_api, findings)
        comment = []
    return findings


def _check_value(path, number, block, value, findings):
    name, digit = value.groups()
    if block.first_value and (int(digit) != 0 or not name.endswith("_UNSPECIFIED")):
        findings.append((path, number, f"enum {block.name} must start with {snake(block.name)}_UNSPECIFIED = 0"))
    if not name.startswith(snake(block.name) + "_"):
        findings.append((path, number, f"{name} must start with {snake(block.name)}_"))
    block.first_value = False


def _check_field(path, number, block, field, said, findings):
    name, digit = field.groups()
    if digit in block.numbers:
        findings.append((path, number, f"{name} uses number {digit}, as {block.numbers[digit]} does"))
    block.numbers[digit] = name
    block.fields += 1
    if not said:
        block.bare.append((name, number))


def _close(path, block, client_api, findings):
    """A message of the client API is explained as a whole, or field by field; one whose name says it all has few fields."""
    if client_api and block.kind == "message" and not block.comment and len(block.bare) > 4 and \
            len(block.bare) == block.fields:
        findings.append((path, block.line, f"message {block.name} has {block.fields} fields and not one comment"))


def main():
    findings = []
    for path in tracked(".proto"):
        if path.startswith("proto/grpc/"):  # the names there are not ours
            continue
        findings += check_text(path, (ROOT / path).read_text(encoding="utf-8"))
    return report("proto_rules", findings)


if __name__ == "__main__":
    sys.exit(main())
