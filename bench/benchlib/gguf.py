"""What the tensors of a GGUF file say of the work a token takes. Reads the head of the file only."""
import struct

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Tensor types by their number: (bytes, elements) of a block.
_BLOCKS = {0: (4, 1), 1: (2, 1), 30: (2, 1), 2: (18, 32), 3: (20, 32), 6: (22, 32), 8: (34, 32), 12: (144, 256), 13: (176, 256),
           14: (210, 256)}


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


def matrices(path):
    """{tensor name: (elements, number of their type)} of all tensors with two dimensions."""
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
            kind = _read(file, "I")
            _read(file, "Q")
            if len(sizes) == 2:
                found[name] = (sizes[0] * sizes[1], kind)
        return found


def matrix_elements(path):
    """{tensor name: elements} of all tensors with two dimensions."""
    return {name: elements for name, (elements, _) in matrices(path).items()}


def bytes_of_a_step(path):
    """Bytes of the matrices that a decode step reads as a whole: those of the layers and the output matrix."""
    def size(elements, kind):
        block_bytes, block_elements = _BLOCKS[kind]
        return elements * block_bytes // block_elements
    found = matrices(path)
    layers = sum(size(*matrix) for name, matrix in found.items() if name.startswith("blk."))
    return layers + size(*found.get("output.weight", found["token_embd.weight"]))


def elements_of_a_token(path):
    """(elements of the layers' matrices, elements of the output matrix): each is multiplied and added once for a token."""
    elements = matrix_elements(path)
    layers = sum(count for name, count in elements.items() if name.startswith("blk."))
    return layers, elements.get("output.weight", elements["token_embd.weight"])


def num_layers(path):
    return 1 + max(int(name.split(".")[1]) for name in matrix_elements(path) if name.startswith("blk."))
