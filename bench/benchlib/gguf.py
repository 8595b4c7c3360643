"""What the tensors of a GGUF file say of the work a token takes. Reads the head of the file only."""
import struct

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def _read(file, form):
    return struct.unpack("<" + form, file.read(struct.calcsize("<" + form)))[0]


def _skip_value(file, kind):
    if kind == _STRING:
        file.seek(_read(file, "Q"), 1)
    elif kind == _ARRAY:
        inner, count = _read(file, "I"), _read(file, "Q")
        if inner in _SCALARS:
            file.seek(count * struct.calcsize(_SCALARS[inner]), 1)
        else:
            for _ in range(count):
                _skip_value(file, inner)
    else:
        _read(file, _SCALARS[kind])


def matrix_elements(path):
    """{tensor name: elements} of all tensors with two dimensions."""
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path}: not a GGUF file")
        _read(file, "I")
        tensors, entries = _read(file, "Q"), _read(file, "Q")
        for _ in range(entries):
            file.seek(_read(file, "Q"), 1)
            _skip_value(file, _read(file, "I"))
        found = {}
        for _ in range(tensors):
            name = file.read(_read(file, "Q")).decode()
            sizes = [_read(file, "Q") for _ in range(_read(file, "I"))]
            _read(file, "I")
            _read(file, "Q")
            if len(sizes) == 2:
                found[name] = sizes[0] * sizes[1]
        return found


def elements_of_a_token(path):
    """(elements of the layers' matrices, elements of the output matrix): each is multiplied and added once for a token."""
    elements = matrix_elements(path)
    layers = sum(count for name, count in elements.items() if name.startswith("blk."))
    return layers, elements.get("output.weight", elements["token_embd.weight"])


def num_layers(path):
    return 1 + max(int(name.split(".")[1]) for name in matrix_elements(path) if name.startswith("blk."))
