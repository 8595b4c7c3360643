"""The picture: two stages in time, under steady decoding and under mixed load, from their own stamps."""
from benchlib import svg, trace
from benchlib.cluster import Cluster


def draw(model, path):
    with Cluster(model, 2, ["--context", 2048]) as two:
        panels = []
        for heading, load in (
                ("steady decode, 24 sequences", dict(mode="steady", sequences=24, prompt_tokens=64, output_tokens=1500)),
                ("requests that arrive by chance, prompts 32-512, outputs 16-64",
                 dict(mode="poisson", rate=4, prompt_tokens="32-512", output_tokens="16-64"))):
            tracks, length = trace.record(two, **load)
            panels.append((heading, tracks, length))
    svg.timelines(path, "Two stages, measured stamps; a colour is a microbatch, grey is idle", panels)
