"""The program that the dataflow runs: a square Ising lattice by Wolff's cluster algorithm, standard library only.

    python ising.py CONFIGURATION.json SERIES.csv

The configuration has `temperature` (in units of J/k), `size`, `sweeps` and `seed`. Each line of the series has the
energy and the magnetization per spin after a sweep: after clusters of at least as many spins as the lattice has. Exits
with 2 if the configuration makes no sense.
"""

import json
import math
import random
import sys
from collections.abc import Sequence

REFUSED = 2


def sweep(spins: list[int], neighbours: Sequence[tuple[int, ...]], bond: float, chance: random.Random) -> None:
    """Flip clusters until as many spins have been flipped as there are."""
    flipped = 0
    while flipped < len(spins):
        start = chance.randrange(len(spins))
        kind = spins[start]
        spins[start] = -kind
        boundary = [start]
        while boundary:
            flipped += 1
            for site in neighbours[boundary.pop()]:
                if spins[site] == kind and chance.random() < bond:
                    spins[site] = -kind
                    boundary.append(site)


def main() -> int:
    configuration, series = sys.argv[1:]
    with open(configuration) as file:
        point = json.load(file)
    temperature, size = point["temperature"], point["size"]
    if temperature <= 0 or size < 2:
        print(f"a lattice of size {size} at temperature {temperature} cannot be simulated", file=sys.stderr)
        return REFUSED
    chance = random.Random(point["seed"])
    count = size * size
    rows = [site - site % size for site in range(count)]
    after = [(row + (site + 1) % size, (site + size) % count) for site, row in enumerate(rows)]
    before = [(row + (site - 1) % size, (site - size) % count) for site, row in enumerate(rows)]
    neighbours = [a + b for a, b in zip(after, before, strict=True)]
    spins = [1] * count
    bond = 1 - math.exp(-2 / temperature)
    with open(series, "w") as file:
        for number in range(point["sweeps"] + point["sweeps"] // 5):
            sweep(spins, neighbours, bond, chance)
            if number >= point["sweeps"] // 5:  # the first ones only bring the lattice to its temperature
                energy = -sum(spins[site] * (spins[right] + spins[below]) for site, (right, below) in enumerate(after))
                print(energy / count, sum(spins) / count, sep=",", file=file)
    print(f"{point['sweeps']} sweeps at T = {temperature}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
