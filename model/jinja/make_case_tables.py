#!/usr/bin/env python3
"""Writes case_tables.inc from the Unicode data of the Python that runs it: python3 make_case_tables.py > case_tables.inc"""
import sys
import unicodedata

FORMS = (("Lower", str.lower), ("Upper", str.upper), ("Title", str.title))


def ranges(delta):
    """Runs (first, last, step, delta) of characters that map by one delta; step 1 or 2."""
    out = []
    for code, d in sorted(delta.items()):
        if out:
            first, last, step, d0 = out[-1]
            gap = code - last
            if d == d0 and gap in (1, 2) and (step == 0 or gap == step):
                out[-1] = (first, code, gap, d)
                continue
        out.append((code, code, 0, d))
    return [(a, b, s or 1, d) for a, b, s, d in out]


def cased_ranges():
    out = []
    for code in range(0x110000):
        c = chr(code)
        if not (c.islower() or c.isupper() or unicodedata.category(c) == "Lt"):
            continue
        if out and out[-1][1] == code - 1:
            out[-1][1] = code
        else:
            out.append([code, code])
    return out


def emit(kind, name, rows):
    print(f"constexpr {kind} {name}[] = {{")
    line = "   "
    for row in rows:
        text = " {" + ", ".join(row) + "},"
        if len(line) + len(text) > 110:
            print(line)
            line = "   "
        line += text
    print(line)
    print("};")


def main():
    print(f"// Made by make_case_tables.py from Unicode {unicodedata.unidata_version}.")
    for name, mapping in FORMS:
        delta, special = {}, []
        for code in range(0x110000):
            if 0xD800 <= code <= 0xDFFF:
                continue
            mapped = mapping(chr(code))
            if mapped == chr(code):
                continue
            if len(mapped) == 1:
                delta[code] = ord(mapped) - code
            else:
                special.append((code, [ord(c) for c in mapped] + [0] * (3 - len(mapped))))
        emit("CaseRange", f"k{name}Ranges", [(hex(a), hex(b), str(s), str(d)) for a, b, s, d in ranges(delta)])
        emit("CaseSpecial", f"k{name}Specials",
             [(hex(code), "{" + ", ".join(hex(c) for c in to) + "}") for code, to in special])
    emit("CodeRange", "kCasedRanges", [(hex(a), hex(b)) for a, b in cased_ranges()])


if __name__ == "__main__":
    sys.exit(main())
