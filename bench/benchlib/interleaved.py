"""Measures several things in turn, A B C A B C, so that what the machine does meanwhile meets all of them alike."""
import sys

from benchlib import measure, noise


class Measurement:
    """What one of them gave in each round, and what else the machine did."""

    def __init__(self):
        self.values, self.noises = [], []

    def spread(self, of=lambda value: value):
        return measure.spread([of(value) for value in self.values])

    def noise(self):
        return noise.summary(self.noises)


def run(measurements, rounds, pids, say=None):
    """{name: Measurement} of {name: function}; each function is called once in each round."""
    results = {name: Measurement() for name in measurements}
    for number in range(rounds):
        for name, function in measurements.items():
            if say:
                print(f"  round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            watch = noise.Noise(pids)
            results[name].values.append(function())
            results[name].noises.append(watch.read())
    return results
