#!/usr/bin/env python3
"""Makes tokenizer cases with Hugging Face tokenizers, from the vocabulary of a GGUF file.

  make_tokenizer_golden.py VOCABULARY.gguf OUT.txt [--count N] [--seed N]

Needs: tokenizers 0.20.3, gguf. tests/golden/smollm2_tokenizer.txt is what it writes for SmolLM2-135M-Instruct with the
defaults. Each line of OUT is the text in hex, a tab, and the ids with spaces between. Control tokens are recognised, BOS is
not added. Characters are those that Unicode 14 assigns, so that the tables of both sides know them.
"""
import argparse
import random
import unicodedata

from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")


def pre_tokenizer(name):
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    expression = {"llama-bpe": LLAMA3, "qwen2": QWEN2}[name]
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), behavior="isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def load(path):
    reader = GGUFReader(path)

    def strings(key):
        field = reader.fields[key]
        return [bytes(field.parts[i]).decode("utf-8") for i in field.data]

    tokens = strings("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in strings("tokenizer.ggml.merges")]
    field = reader.fields["tokenizer.ggml.token_type"]
    types = [int(field.parts[i][0]) for i in field.data]
    name = strings("tokenizer.ggml.pre")[0]
    vocabulary = {text: i for i, text in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizer(name)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False)
                                  for t, kind in zip(tokens, types) if kind in (2, 3)])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False)
                          for t, kind in zip(tokens, types) if kind == 4])
    control = [t for t, kind in zip(tokens, types) if kind == 3]
    return tokenizer, control


class Texts:
    """Random texts that are hard to cut."""

    WHITE = [" ", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u0085", "\u180e", "\u1680", "\u2003", "\u2028", "\u200b",
             "\u202f", "\u205f", "\u3000", "\x0b", "\x0c", "\x1c", "\x1f", "\ufeff"]
    CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "'Re", "'\u017f", "'x", "''s", "\u2019s", "'",
                    "'l", "'r", "'v"]
    EMOJI = ["\U0001F600", "\U0001F469\u200d\U0001F469\u200d\U0001F467", "\U0001F1E9\U0001F1EA", "\u2764\ufe0f",
             "\U0001F44D\U0001F3FD", "1\ufe0f\u20e3", "\U0001F3F4\U000E0067\U000E0062\U000E007F"]
    NUMBERS = ["0", "7", "42", "2026", "3.14159", "1,000,000", "\u00bd", "\u00b2", "\u2167", "\u0663\u0664", "\u096b",
               "\u4e09", "\u2460", "\U0001D7D8", "0x1F", "1e-9"]
    WORDS = ["the", "Hello", "tokenization", "ing", "\u00dcbergr\u00f6\u00dfe", "\u043d\u0435\u0449\u043e", "\u6771\u4eac\u306f",
             "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u1780\u17b6\u1793\u17cb", "\u0645\u0631\u062d\u0628\u0627", "e\u0301",
             "\ud55c\uad6d\uc5b4", "snake_case", "CamelCase", "\u017fo", "\u01c5", "\u02b0", "\u0130"]
    MARKS = ["!", "...", "?!", "-", "--", "_", "(", ")", "{}", "\"", "`", "//", "/*", "#", "$", "\u20ac", "\u00ad", "\u200d",
             "\u0301", "<", "|", ">", "<|", "|>", "=", "\u3002", "\u2026", "\x00", "\x04", "\x1b", "\x7f", "\ufffd"]

    def __init__(self, seed, control):
        self.random = random.Random(seed)
        self.control = control + [t[:-1] for t in control[:3]] + [t[1:] for t in control[:3]]
        self.assigned = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]

    def part(self):
        r = self.random
        kind = r.randrange(10)
        if kind == 0:
            return "".join(r.choice(self.WHITE) for _ in range(r.randint(1, 5)))
        if kind == 1:
            return r.choice(self.CONTRACTIONS)
        if kind == 2:
            return r.choice(self.EMOJI) * r.randint(1, 2)
        if kind == 3:
            return r.choice(self.NUMBERS) * r.randint(1, 2)
        if kind == 4:
            return r.choice(self.MARKS) * r.randint(1, 4)
        if kind == 5:
            return "".join(r.choice(self.assigned) for _ in range(r.randint(1, 6)))
        if kind == 6:
            return r.choice(self.control) if r.randrange(4) == 0 else chr(r.randrange(0x20, 0x7f))
        return r.choice(["", " ", " "]) + r.choice(self.WORDS)

    def text(self):
        return "".join(self.part() for _ in range(self.random.randint(1, 14)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabulary")
    parser.add_argument("out")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    tokenizer, control = load(arguments.vocabulary)
    texts = Texts(arguments.seed, control)
    with open(arguments.out, "w", encoding="ascii") as out:
        for _ in range(arguments.count):
            text = texts.text()
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            out.write(f"{text.encode('utf-8').hex()}\t{' '.join(map(str, ids))}\n")


if __name__ == "__main__":
    main()
