#!/usr/bin/env python3
"""Measures how far llama.cpp is from the golden data, which is float32 throughout: the bar for our int8 path.

  make_llama_cpp_golden.py MODEL.gguf SMOLLM2.json LLAMA_CPP_FOLDER OUT.json

LLAMA_CPP_FOLDER: where bench/peers/get_llama_cpp.sh unpacked and built it (the folder that holds llama.cpp/ and build/).
One thread, one sequence per prompt, KV in float16 (its default), prompts in batches of 512, with and without flash attention.
Per prompt:
  nll          mean negative log likelihood of the prompt
  kl           divergence of llama.cpp's distribution after the last token from the golden one, both over the 32 tokens that
               golden lists, each renormalised to sum 1: sum p log(p / q)
  kl_rest      the same over 33 outcomes: the 32 tokens, and all others together
Per file: the means over all prompts, and of the `steps` golden tokens whose margin exceeds 0.5 how many are llama.cpp's choice too.
"""
import json, math, os, subprocess, sys, tempfile

def log_softmax(values):
    top = max(values)
    total = top + math.log(sum(math.exp(v - top) for v in values))
    return [v - total for v in values]

def divergence(golden, other):
    """sum p log(p / q) of two lists of log probabilities."""
    return sum(math.exp(p) * (p - q) for p, q in zip(golden, other))

def with_rest(logits, logsumexp):
    """Log probabilities of the listed tokens and of all others together."""
    listed = [v - logsumexp for v in logits]
    return listed + [math.log(max(1 - sum(math.exp(v) for v in listed), 1e-12))]

def measure(program, model, golden, flash):
    lines = []
    for case in golden["cases"]:
        ids, tokens = case["ids"] + case["greedy"], [token for token, _ in case["top"]]
        lines.append(" ".join(map(str, [len(case["ids"]), len(ids), *ids, len(tokens), *tokens])))
    out = subprocess.run([program, model, str(int(flash))], input="\n".join(lines), capture_output=True, text=True, check=True).stdout
    cases, agree, steps = [], 0, 0
    for case, line in zip(golden["cases"], out.splitlines(), strict=True):
        numbers = [float(word) for word in line.split()]
        logits, logsumexp, count = [value for _, value in case["top"]], case["logsumexp"], len(case["top"])
        theirs = numbers[2:2 + count]
        entry = {"name": case["name"],
                 "kl": divergence(log_softmax(logits), log_softmax(theirs)),
                 "kl_rest": divergence(with_rest(logits, logsumexp), with_rest(theirs, numbers[1]))}
        if "nll" in case: entry.update(nll=numbers[0], nll_error=abs(numbers[0] - case["nll"]))
        cases.append(entry)
        choices = [int(n) for n in numbers[2 + count:]]
        for token, margin, choice in zip(case["greedy"], case["margin"], choices, strict=True):
            if margin > 0.5:
                steps += 1
                agree += token == choice
    mean = lambda key: (lambda values: sum(values) / len(values))([c[key] for c in cases if key in c])
    return {"mean_nll_error": mean("nll_error"), "mean_kl": mean("kl"), "mean_kl_rest": mean("kl_rest"),
            "steps": steps, "agree": agree, "cases": cases}

def rounded(value):
    if isinstance(value, float): return float(f"{value:.6g}")
    if isinstance(value, dict): return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list): return [rounded(v) for v in value]
    return value

def main():
    model, golden_path, folder, out_path = sys.argv[1:5]
    golden = json.load(open(golden_path))
    here, libraries = os.path.dirname(os.path.abspath(__file__)), f"{folder}/build/bin"
    with tempfile.TemporaryDirectory() as scratch:
        program = f"{scratch}/llama_cpp_logits"
        subprocess.run(["g++", "-std=c++20", "-O2", f"{here}/llama_cpp_logits.cc", f"-I{folder}/llama.cpp/include",
                        f"-I{folder}/llama.cpp/ggml/include", f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lllama", "-lggml",
                        "-lggml-base", "-o", program], check=True)
        result = {"model": golden["model"], "oracle": f"{os.path.basename(os.path.abspath(folder))}, 1 thread, KV in float16"}
        for name, flash in (("flash", True), ("no_flash", False)):
            result[name] = measure(program, model, golden, flash)
            print(name, {k: v for k, v in result[name].items() if k != "cases"}, flush=True)
    json.dump(rounded(result), open(out_path, "w"), separators=(",", ":"))

if __name__ == "__main__":
    main()
