#!/usr/bin/env python3
"""Writes the chat templates that stand as strings in llama.cpp's tests/test-chat-template.cpp as *.jinja files.

  extract_llama_cpp_templates.py TEST_CHAT_TEMPLATE.cpp FOLDER
"""
import ast
import pathlib
import re
import sys

RAW = re.compile(r'\s*(?:u8)?R"(\w*)\((.*?)\)\1"', re.S)
PLAIN = re.compile(r'\s*(?:u8)?"((?:[^"\\\n]|\\.)*)"')
FIELD = re.compile(r'/\* \.name=?\s*\*/\s*"([^"]*)"|/\* \.template_str=?\s*\*/\s*(?:U8C\()?')


def joined_literals(source, at):
    """The string that the adjacent literals at `at` make."""
    text = ""
    while True:
        if match := RAW.match(source, at):
            text += match.group(2)
        elif match := PLAIN.match(source, at):
            text += ast.literal_eval(f'"{match.group(1)}"')
        else:
            return text
        at = match.end()


def main():
    source = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
    folder = pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    name, count = "", 0
    for field in FIELD.finditer(source):
        if field.group(1) is not None:
            name = re.sub(r"[^A-Za-z0-9.]+", "_", field.group(1))
        elif name and (text := joined_literals(source, field.end())):
            (folder / f"{name}.jinja").write_text(text, encoding="utf-8")
            count += 1
    print(f"{folder}: {count} templates")
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
