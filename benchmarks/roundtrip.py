"""How many crystals survive the round trip structure -> Wyckoff tokens -> structure.

Every crystal of the given parquet files (columns ``id``, ``lattice``, ``numbers``,
``frac_coords``) is encoded, decoded, and compared with the original by pymatgen's
StructureMatcher at its defaults. The matcher first reduces both crystals to primitive cells within
0.25 Å, and where a pseudo-translation lies at that edge it reduces only one of the two; a mismatch
is therefore compared again without that reduction and, if it then agrees, reported under a reason
of its own. The report gives counts, the root-mean-square displacement of the matches (in units of
the free length per atom, (V/N)^(1/3)), and every failure with its reason.

Usage: ``python benchmarks/roundtrip.py CRYSTALS.parquet ... [--limit N] [--processes P]
[--symprec 0.01] [--output roundtrip.json]``
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nucleate.structures.settings import canonical_setting
from nucleate.structures.wyckoff import Cell, decode, encode_cells

COLUMNS = ["id", "lattice", "numbers", "frac_coords"]


def read(paths: list[Path]) -> tuple[list[str], list[Cell]]:
    """Identifiers and cells of the rows of all files."""
    table = pa.concat_tables([pq.read_table(path, columns=COLUMNS) for path in paths])
    rows = table.to_pydict()
    cells = [
        (np.array(lattice).reshape(3, 3), np.array(numbers), np.array(coords).reshape(-1, 3))
        for lattice, numbers, coords in zip(*(rows[c] for c in COLUMNS[1:]), strict=True)
    ]
    return rows["id"], cells


def check(cells: list[Cell], symprec: float, canonical: bool) -> list[tuple[str, float]]:
    """Reason and displacement of each crystal: ("", rms) where the round trip holds."""
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

    matcher, unreduced = StructureMatcher(), StructureMatcher(primitive_cell=False)
    batch, refused = encode_cells(cells, symprec)
    if canonical:
        batch = canonical_setting(batch)
    structures, undecoded = decode(batch)
    verdicts: list[tuple[str, float]] = []
    for cell, structure, a, b in zip(cells, structures, refused, undecoded, strict=True):
        if a or structure is None:
            verdicts.append((a or b, np.nan))
            continue
        original = Structure(*cell)
        distance = matcher.get_rms_dist(original, structure)
        if distance:
            verdicts.append(("", distance[0]))
        elif unreduced.fit(original, structure):
            verdicts.append(("the matcher reduced only one of the two cells; else equal", np.nan))
        else:
            verdicts.append(("decoded structure differs", np.nan))
    return verdicts


def main(arguments: list[str] | None = None) -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("crystals", nargs="+", type=Path)
    parser.add_argument("--limit", type=int, help="a random sample of this size (seed 0)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--symprec", type=float, default=0.01, help="Å")
    parser.add_argument("--canonical", action="store_true", help="go through canonical_setting")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)

    identifiers, cells = read(options.crystals)
    chosen = np.arange(len(cells))
    if options.limit and options.limit < len(cells):
        chosen = np.sort(np.random.default_rng(0).choice(len(cells), options.limit, replace=False))
    parts = [[cells[i] for i in part] for part in np.array_split(chosen, len(chosen) // 200 + 1)]
    started = time.perf_counter()
    work = partial(check, symprec=options.symprec, canonical=options.canonical)
    with ProcessPoolExecutor(options.processes) as pool:
        verdicts = [v for part in pool.map(work, parts) for v in part]
    seconds = time.perf_counter() - started

    failures = [(identifiers[i], why) for i, (why, _) in zip(chosen, verdicts, strict=True) if why]
    rms = np.array([value for why, value in verdicts if not why])
    report = {
        "crystals": len(chosen),
        "matched": len(rms),
        "matched_percent": round(100 * len(rms) / max(1, len(chosen)), 4),
        "rms_median": float(np.median(rms)) if len(rms) else None,
        "rms_max": float(rms.max()) if len(rms) else None,
        "reasons": Counter(why for _, why in failures),
        "failures": failures,
        "symprec_angstrom": options.symprec,
        "canonical": options.canonical,
        "seconds": round(seconds, 1),
    }
    text = json.dumps(report, indent=1)
    if options.output:
        options.output.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
