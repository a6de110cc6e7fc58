r"""A second, independent judge: which of the crystals that CHGNet calls stable does it confirm?

    python benchmarks/second_judge.py all --tuned RUN/model --out OUT --crystals CRYSTALS \
        --models MATGL_MODELS --legacy FORMATION_ENERGIES.parquet --matgl-python V/bin/python

``all`` runs three stages, each of which may be run alone:

``sample``   (this package) draws crystals from both models, has CHGNet judge them, and adds
             validation crystals whose energy above hull is known and reference crystals;
``predict``  (an interpreter with matgl 4.1.2, which needs nothing of this package) lets a matgl
             model judge the same crystals;
``compare``  (this package) compares the two verdicts, with 95 % Wilson intervals.

Judges, each with energies and a hull of its own kind:

``megnet``     MEGNet-MP-2018.6.1-Eform: formation energies of the Materials Project of 2018 (legacy
               corrections), against the hull of the same vintage (Bartel 2020). It has seen many of
               the validation crystals in training.
``tensornet``  TensorNet-MatPES-PBE-v2025.1: PBE energies without corrections, against a hull of the
               near-hull crystals of the data set by the same potential; large elemental cells
               (alpha-Mn, S, P) are missing from that data.

An environment for ``predict``: ``python3 -m venv V``, ``V/bin/pip install torch==2.13.0`` (CPU
build), then ``V/bin/pip install matgl==4.1.2``. Older matgl weights have the other direction of
messages and give wrong numbers without an error; known compounds are checked before all else.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import csv
import json
import subprocess
import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from arguments import existing

STABLE = 0.1  # eV/atom
LABELLED_STABLE, LABELLED_UNSTABLE = 0.05, 0.15  # eV/atom
NEAR_HULL = 0.005  # eV/atom, reference crystals
LARGEST_VOLUME = 60.0  # Å³ an atom
FIRST_SEED = 1_000_003  # as in the package's own judgement of a run
MODELS = {
    "megnet": "MEGNet-MP-2018.6.1-Eform",
    "tensornet": "TensorNet-MatPES-PBE-v2025.1-PES",
}
CHECK_TOLERANCE = 0.1  # eV/atom
SETS = ("base", "tuned")
NEEDED = {"sample": ("tuned", "crystals"), "predict": ("models",), "compare": ("legacy",)}


# sample -----------------------------------------------------------------------------------------


def _samples(name: str, model: str, seeds: Sequence[int], count: int, stability: Any) -> list[dict]:
    """Crystals of a model with CHGNet's energy above hull; those without one keep a reason."""
    from nucleate.policies.checkpoint import load_policy
    from nucleate.samples import sample
    from nucleate.structures.validity import check_all

    policy, rows = load_policy(model), []
    for seed in seeds:
        drawn = sample(policy, count, seed=FIRST_SEED + seed)
        reasons = check_all(drawn.structures)
        valid = [i for i, why in enumerate(reasons) if not why]
        scores = stability.evaluate([drawn.structures[i] for i in valid])
        for i, value in zip(valid, scores.value, strict=True):
            row = {"label": f"{name}-{seed}-{i}", "seed": seed, "chgnet": float(value)}
            rows.append({"structure": drawn.structures[i], **row})
        print(f"{name}, seed {seed}: {len(valid)} of {count} valid", flush=True)
    return rows


def _table(data: Path) -> Any:
    """All labelled crystals at hand, without cells that are mostly empty."""
    import pandas as pd

    files = sorted(data.glob("*.parquet"))
    parts = [pd.read_parquet(path).assign(part=path.stem) for path in files]
    table = pd.concat(parts, ignore_index=True)
    return table[table.vol_per_atom < LARGEST_VOLUME]


def _structures(table: Any) -> list[Any]:
    from pymatgen.core import Lattice, Structure

    return [
        Structure(Lattice(np.reshape(lattice, (3, 3))), numbers, np.reshape(coords, (-1, 3)))
        for lattice, numbers, coords in zip(
            table.lattice, table.numbers, table.frac_coords, strict=True
        )
    ]


def _references(table: Any, systems: set[frozenset[int]]) -> Any:
    """Near-hull compounds, and all elemental crystals, within the chemical systems."""
    sets = [frozenset(int(z) for z in numbers) for numbers in table.numbers]
    wanted = {part for system in systems for part in _parts(system)}
    inside = np.array([s in wanted for s in sets])
    element = np.array([len(s) == 1 for s in sets])
    chosen = table[inside & (element | (table.e_hull <= NEAR_HULL).to_numpy())]
    return chosen.sort_values("e_form").drop_duplicates(["formula", "sg_001"])


def _parts(system: frozenset[int]) -> set[frozenset[int]]:
    """All non-empty subsets."""
    parts = {frozenset[int]()}
    for element in system:
        parts |= {part | {element} for part in parts}
    return parts - {frozenset()}


def sample_stage(options: argparse.Namespace) -> None:
    from nucleate.design import potential_pool
    from nucleate.properties.stability import EnergyAboveHull

    out: Path = options.out
    models = dict(zip(SETS, (options.base, options.tuned), strict=True))
    table = _table(options.crystals)
    labelled = table[(table.part == "val") & table.e_hull.notna()]
    labelled = labelled.sample(min(options.validation, len(labelled)), random_state=0)
    validation = [
        {"structure": s, "label": name, "e_hull": float(e)}
        for s, name, e in zip(_structures(labelled), labelled.id, labelled.e_hull, strict=True)
    ]
    with potential_pool(workers=options.workers) as potential:
        stability = EnergyAboveHull(potential)
        found = {
            name: _samples(name, model, options.seeds, options.count, stability)
            for name, model in models.items()
        }
        scores = stability.evaluate([row["structure"] for row in validation])
        for row, value in zip(validation, scores.value, strict=True):
            row["chgnet"] = float(value)
    judged = [
        row["structure"]
        for rows in found.values()
        for row in rows
        if row["chgnet"] < STABLE + options.margin
    ] + [row["structure"] for row in validation]
    systems = {frozenset(s.atomic_numbers) for s in judged}
    chosen = _references(table, systems)
    references = [
        {"structure": s, "label": name}
        for s, name in zip(_structures(chosen), chosen.id, strict=True)
    ]
    for name, rows in {**found, "validation": validation, "references": references}.items():
        write_frames(rows, out / f"{name}.extxyz")
    about = {"models": models, "count": options.count, "seeds": list(options.seeds)}
    about |= {"hull": stability.hull.name, "margin": options.margin}
    (out / "about.json").write_text(json.dumps(about))


def write_frames(rows: Sequence[dict], path: Path) -> None:
    """Crystals with their numbers as extended XYZ."""
    from nucleate.structures.writing import write_extxyz

    numbers = [{k: v for k, v in row.items() if k != "structure"} for row in rows]
    write_extxyz([row["structure"] for row in rows], path, numbers)
    print(f"{path}: {len(rows)} crystals", flush=True)


# predict ----------------------------------------------------------------------------------------


class Judge:
    """A matgl model as a function from a crystal to eV/atom."""

    def __init__(self, folder: Path) -> None:
        import matgl
        import torch
        from matgl.ext.pymatgen import Structure2Graph

        torch.set_num_threads(1)
        self.model = matgl.load_model(str(folder))
        self.total = not folder.name.startswith("MEGNet")
        if self.total:
            self.model.calc_forces = self.model.calc_stresses = False
            self.model.eval()
            inner = self.model.model
            self.converter = Structure2Graph(element_types=inner.element_types, cutoff=inner.cutoff)

    def __call__(self, structure: Any) -> float:
        """Formation energy (MEGNet) or total energy (a potential), eV/atom."""
        import torch

        if not self.total:
            return float(self.model.predict_structure(structure))
        graph, lattice, state = self.converter.get_graph(structure)
        energy = self.model(g=graph, lat=lattice, state_attr=torch.tensor(state))[0]
        return float(energy) / len(structure)

    def check(self) -> None:
        """Refuse weights that don't fit this version of matgl.

        Formation energies of compounds tell: of elements, misread weights are right.
        """
        if self.total:
            nickel, aluminium = (
                self(_cubic("Fm-3m", a, [x])) for a, x in ((3.52, "Ni"), (4.04, "Al"))
            )
            alloy = self(_cubic("Pm-3m", 2.89, ["Ni", "Al"]))
            found = [("NiAl", alloy - (nickel + aluminium) / 2, -0.66)]
        else:
            salts = (("MgO", 4.21, ["Mg", "O"], -3.06), ("NaCl", 5.69, ["Na", "Cl"], -2.12))
            found = [(name, self(_cubic("Fm-3m", a, x)), e) for name, a, x, e in salts]
        for name, energy, expected in found:
            print(f"{name}: formation energy {energy:.3f} eV/atom, expected {expected}")
            if not abs(energy - expected) < CHECK_TOLERANCE:
                raise SystemExit("these weights don't fit this version of matgl")


def _cubic(group: str, length: float, species: Sequence[str]) -> Any:
    """Primitive cell with the species at the origin and the centre; ``length`` in Å."""
    from pymatgen.core import Lattice, Structure

    sites = [[0, 0, 0], [0.5, 0.5, 0.5]][: len(species)]
    crystal = Structure.from_spacegroup(group, Lattice.cubic(length), species, sites)
    return crystal.get_primitive_structure()


def predict_stage(options: argparse.Namespace) -> None:
    from ase.io import iread
    from pymatgen.io.ase import AseAtomsAdaptor

    warnings.simplefilter("ignore")
    for name in options.judges:
        judge = Judge(options.models / MODELS[name])
        judge.check()
        stems = [*SETS, "validation", *(["references"] if judge.total else [])]
        for stem in stems:
            rows = []
            for atoms in iread(options.out / f"{stem}.extxyz"):
                margin = options.chgnet_below if judge.total and stem in SETS else np.inf
                if not atoms.info.get("chgnet", -np.inf) < margin:
                    continue
                try:
                    value, reason = judge(AseAtomsAdaptor.get_structure(atoms)), ""
                except (RuntimeError, ValueError, KeyError, IndexError) as error:
                    value, reason = float("nan"), f"{type(error).__name__}: {error}"
                rows.append({"label": atoms.info["label"], "energy": value, "reason": reason})
            with (options.out / f"{stem}.{name}.csv").open("w", newline="") as stream:
                writer = csv.DictWriter(stream, ["label", "energy", "reason"])
                writer.writeheader()
                writer.writerows(rows)
            failed = sum(bool(row["reason"]) for row in rows)
            print(f"{name}, {stem}: {len(rows)} crystals, {failed} failed", flush=True)


# compare ----------------------------------------------------------------------------------------


def _read(out: Path, stem: str, judge: str) -> Any:
    """Crystals of a set that the judge has seen: composition, its energy, CHGNet's verdict."""
    import pandas as pd
    from ase.io import iread
    from pymatgen.core import Composition

    rows = [
        {**atoms.info, "composition": Composition(atoms.get_chemical_formula())}
        for atoms in iread(out / f"{stem}.extxyz")
    ]
    table = pd.DataFrame(rows).set_index("label")
    energies = pd.read_csv(out / f"{stem}.{judge}.csv", index_col="label").energy
    return table.join(energies)


def _hull(judge: str, options: argparse.Namespace) -> Any:
    """The hull of the judge's own kind of energies."""
    from nucleate.physics.hull_build import hull_from_phases
    from nucleate.physics.hull_card import HullCard
    from nucleate.physics.phases import PhaseTable, read_formation_table

    if judge == "megnet":
        phases = read_formation_table(
            options.legacy, correction="legacy", energy_column="e_form_per_atom"
        )
        card = HullCard("legacy", "DFT", "PBE(+U)", "legacy", "Materials Project, 2019")
        return hull_from_phases(phases, card)
    known = _read(options.out, "references", judge).dropna(subset=["energy"])
    phases = PhaseTable(list(known.composition), known.energy.to_numpy(), False, "none")
    card = HullCard(judge, MODELS[judge], "PBE", "none", "near-hull crystals of the data set")
    return hull_from_phases(phases, card)


def compare_stage(options: argparse.Namespace) -> None:
    from nucleate.evaluation.intervals import Fraction, difference

    about = json.loads((options.out / "about.json").read_text())
    print(f"models {about['models']}, {about['count']} samples each for seeds {about['seeds']}")
    for judge in options.judges:
        hull = _hull(judge, options)
        print(f"\n{MODELS[judge]} against its own hull ({hull.name}, {len(hull)} phases)")
        confirmed = {}
        for stem in ("validation", *SETS):
            table = _read(options.out, stem, judge)
            table = table[table.energy.notna() & table.chgnet.notna()].copy()
            table["verdict"], _ = hull.e_above_hull(
                list(table.composition), table.energy.to_numpy(), formation=judge == "megnet"
            )
            without = int(table.verdict.isna().sum())
            table = table[table.verdict.notna()]
            if stem == "validation":
                _print_calibration(table)
                continue
            stable = table[table.chgnet < STABLE]
            confirmed[stem] = Fraction.of(int((stable.verdict < STABLE).sum()), len(stable))
            shift = (stable.verdict - stable.chgnet).median()
            print(
                f"{stem}: of the crystals that CHGNet calls stable (E_hull < {STABLE} eV/atom, "
                f"hull {about['hull']}) it confirms {_text(confirmed[stem])}; median difference "
                f"{1e3 * shift:+.0f} meV/atom; {without} of the set without a verdict"
            )
            if judge == "megnet":
                drawn = about["count"] * len(about["seeds"])
                total = Fraction.of(int((table.verdict < STABLE).sum()), drawn)
                own = Fraction.of(int((table.chgnet < STABLE).sum()), drawn)
                print(f"{stem}: stable of all samples by CHGNet {_text(own)}, by it {_text(total)}")
        change = difference(confirmed["base"], confirmed["tuned"])
        print(
            f"tuned less base: {100 * change.value:+.1f} points "
            f"(95 % {100 * change.low:+.1f} to {100 * change.high:+.1f})"
        )


def _print_calibration(table: Any) -> None:
    """What the judge, and CHGNet, say of crystals with a known energy above hull."""
    from nucleate.evaluation.intervals import Fraction

    for words, chosen in (
        (f"below {LABELLED_STABLE}", table[table.e_hull < LABELLED_STABLE]),
        (f"above {LABELLED_UNSTABLE}", table[table.e_hull > LABELLED_UNSTABLE]),
    ):
        its = Fraction.of(int((chosen.verdict < STABLE).sum()), len(chosen))
        chgnet = Fraction.of(int((chosen.chgnet < STABLE).sum()), len(chosen))
        print(
            f"validation crystals labelled {words} eV/atom: it calls {_text(its)} stable, "
            f"CHGNet {_text(chgnet)}"
        )


def _text(fraction: Any) -> str:
    return (
        f"{100 * fraction.value:.1f} % ({fraction.count}/{fraction.n}, "
        f"95 % {100 * fraction.low:.1f}-{100 * fraction.high:.1f})"
    )


# all --------------------------------------------------------------------------------------------


def all_stages(options: argparse.Namespace) -> None:
    sample_stage(options)
    command = [str(options.matgl_python), __file__, "predict", "--out", str(options.out)]
    command += ["--models", str(options.models), "--judges", *options.judges]
    command += ["--chgnet-below", str(STABLE + options.margin)]
    subprocess.run(command, check=True)
    compare_stage(options)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = {
        "all": all_stages,
        "sample": sample_stage,
        "predict": predict_stage,
        "compare": compare_stage,
    }
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--out", type=Path, required=True, help="folder of all intermediate files")
    parser.add_argument("--base", default="base", help="name or folder of the model before")
    parser.add_argument("--tuned", help="folder of the model after")
    parser.add_argument("--count", type=int, default=1000, help="samples of each model and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--validation", type=int, default=1000, help="crystals with known labels")
    parser.add_argument("--workers", type=int, default=0, help="for CHGNet; 0: one a core")
    parser.add_argument("--judges", nargs="+", choices=MODELS, default=["megnet"])
    parser.add_argument("--margin", type=float, default=0.0, help="eV/atom, judged too")
    parser.add_argument("--chgnet-below", type=float, default=np.inf, help="for potentials only")
    parser.add_argument(
        "--crystals", type=existing, help="folder with val.parquet, labelled, and others.parquet"
    )
    parser.add_argument("--models", type=existing, help="folder of the matgl models")
    parser.add_argument(
        "--legacy", type=existing, help="table of formula and e_form_per_atom, for megnet's hull"
    )
    parser.add_argument("--matgl-python", type=existing, help="interpreter with matgl")
    options = parser.parse_args()
    needed = dict(NEEDED)
    if "megnet" not in options.judges:
        needed["compare"] = ()
    needed["all"] = (*chain.from_iterable(needed.values()), "matgl_python")
    absent = [name for name in needed[options.stage] if getattr(options, name) is None]
    if absent:
        missing = ", ".join(f"--{name.replace('_', '-')}" for name in absent)
        parser.error(f"the stage {options.stage} needs {missing}")
    options.out.mkdir(parents=True, exist_ok=True)
    stages[options.stage](options)


if __name__ == "__main__":
    main()
