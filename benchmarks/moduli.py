"""Elastic tensors with CHGNet: one crystal at a time with its own ASE calculator, against ours.

    python benchmarks/moduli.py --crystals CRYSTALS.parquet [--number 5]
    python benchmarks/moduli.py --crystals CRYSTALS.parquet --check 200

Both sides start from the same primitive cells, relax cell and atoms to the same largest force, and
give the tensor with atoms that follow the strain, by the same strains. One by one that is ASE's
FIRE on the package's calculator, pymatgen's set of 24 deformed cells, the atoms of each relaxed,
and pymatgen's fit of the tensor: the procedure of the Materials Project. One thread, processor
time. Bulk moduli must agree to 5 % in the median, or the script fails.

With ``--check``, bulk and shear moduli (Hill) against the table's own: mean absolute error, rank
correlation, failures by reason, for atoms that relax and for clamped ones, and bulk moduli from the
equation of state.

The table has the columns lattice, numbers, frac_coords; for ``--check`` also bulk_modulus_vrh and
shear_modulus_vrh, GPa.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import time
import warnings
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from pymatgen.core import Lattice, Structure
from scipy.stats import spearmanr

from arguments import existing
from nucleate.physics.cells import as_cell, as_structure
from nucleate.physics.chgnet import ChgnetPotential
from nucleate.physics.elasticity import GPA, Elasticity, ElasticSettings, ElasticTensor, elasticity
from nucleate.physics.equation_of_state import EquationOfState, StateSettings, equations_of_state
from nucleate.physics.relax import TIGHT
from nucleate.physics.symmetry import primitive_cell

MOST_ATOMS = 20
CREDIBLE = (1.0, 600.0)  # GPa; some labels are failed calculations


def table_of(path: Path, number: int, labelled: bool) -> pd.DataFrame:
    """A fixed random choice of crystals of at most 20 atoms."""
    table = pd.read_parquet(path)
    table = table.dropna(subset=["lattice"])
    if labelled:
        for modulus in ("bulk_modulus_vrh", "shear_modulus_vrh"):
            table = table[table[modulus].between(*CREDIBLE)]
    table = table[table["numbers"].map(len) <= MOST_ATOMS]
    return table.sample(number, random_state=0)


def crystals_of(table: pd.DataFrame) -> list[Structure]:
    return [
        Structure(
            Lattice(np.reshape(row.lattice, (3, 3))),
            row.numbers,
            np.reshape(row.frac_coords, (-1, 3)),
        )
        for row in table.itertuples()
    ]


def one_by_one(structure: Structure, calculator: object, settings: ElasticSettings) -> np.ndarray:
    """(6, 6) GPa; RuntimeError if a relaxation does not converge."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE
    from pymatgen.analysis.elasticity import DeformedStructureSet, Strain, Stress
    from pymatgen.analysis.elasticity import ElasticTensor as Fitted

    def relaxed(start: Structure, cell: bool) -> object:
        atoms = start.to_ase_atoms()
        atoms.calc = calculator
        optimiser = FIRE(FrechetCellFilter(atoms) if cell else atoms, logfile=None)
        if not optimiser.run(fmax=TIGHT.fmax, steps=TIGHT.max_steps):
            raise RuntimeError("not converged")
        return atoms

    atoms = relaxed(structure, cell=True)
    minimum = Structure(
        Lattice(atoms.cell.array), atoms.get_chemical_symbols(), atoms.get_scaled_positions()
    )
    sizes = [sign * size for size in settings.strains for sign in (-1, 1)]
    deformed = DeformedStructureSet(minimum, norm_strains=sizes, shear_strains=sizes)
    strains = [Strain.from_deformation(d) for d in deformed.deformations]
    stresses = [
        Stress(relaxed(cell, cell=False).get_stress(voigt=False) * GPA).piola_kirchoff_2(d)
        for cell, d in zip(deformed, deformed.deformations, strict=True)
    ]
    return Fitted.from_independent_strains(strains, [Stress(s) for s in stresses]).voigt


def compare(structures: list[Structure]) -> None:
    from chgnet.model import CHGNet
    from chgnet.model.dynamics import CHGNetCalculator

    with contextlib.redirect_stdout(io.StringIO()):
        calculator = CHGNetCalculator(CHGNet.load(use_device="cpu"), use_device="cpu")
    potential, settings = ChgnetPotential(), ElasticSettings()
    structures = [as_structure(primitive_cell(as_cell(s), settings.symprec)) for s in structures]
    potential.evaluate(structures[:2], forces=True, stress=True)
    calculator.calculate(structures[0].to_ase_atoms())

    start = time.process_time()
    ours = elasticity(structures, potential, settings)
    our_time = time.process_time() - start
    start = time.process_time()
    theirs: list[np.ndarray | None] = []
    for structure in structures:
        try:
            theirs.append(one_by_one(structure, calculator, settings))
        except RuntimeError:
            theirs.append(None)
    their_time = time.process_time() - start

    differences = []
    for structure, mine, other in zip(structures, ours, theirs, strict=True):
        name = structure.composition.reduced_formula
        if not isinstance(mine, Elasticity) or other is None:
            print(
                f"{name}: ours {mine if isinstance(mine, Exception) else 'done'}, "
                f"theirs {'not converged' if other is None else 'done'}"
            )
            continue
        bulk, shear = mine.tensor.moduli("voigt")
        their_bulk, their_shear = ElasticTensor(other).moduli("voigt")
        differences.append(abs(bulk / their_bulk - 1))
        print(
            f"{name}, {len(structure)} atoms: Voigt K {bulk:.1f} and {their_bulk:.1f} GPa, "
            f"G {shear:.1f} and {their_shear:.1f} GPa; "
            f"{mine.n_evaluations} cells after the relaxation"
        )
    n = len(structures)
    print(f"median difference of bulk moduli {np.median(differences):.1%}, of {len(differences)}")
    print(
        f"one by one {their_time / n:.2f} s, ours {our_time / n:.2f} s a crystal; "
        f"load average {os.getloadavg()[0]:.1f}"
    )
    if np.median(differences) > 0.05:
        raise SystemExit("the bulk moduli differ by more than 5 % in the median")
    print(f"ratio: {their_time / our_time:.1f}")


def agreement(name: str, found: np.ndarray, expected: np.ndarray) -> str:
    ok = np.isfinite(found)
    error = np.abs(found - expected)[ok].mean()
    logarithmic = np.abs(np.log10(found[ok] / expected[ok])).mean()
    rank = spearmanr(found[ok], expected[ok]).statistic
    bias = np.median(found[ok] / expected[ok])
    return (
        f"{name:22s} n {ok.sum():4d}  MAE {error:6.1f} GPa  MAE log10 {logarithmic:.3f}  "
        f"Spearman {rank:.3f}  median ratio {bias:.2f}"
    )


def check(table: pd.DataFrame, strains: tuple[float, ...]) -> None:
    structures, potential = crystals_of(table), ChgnetPotential()
    bulk, shear = table["bulk_modulus_vrh"].to_numpy(), table["shear_modulus_vrh"].to_numpy()
    start = time.process_time()
    found = elasticity(structures, potential, ElasticSettings(strains=strains))
    seconds = (time.process_time() - start) / len(structures)
    reasons = Counter(str(f).partition(":")[0] for f in found if isinstance(f, Exception))
    reasons["unstable"] = sum(isinstance(f, Elasticity) and not f.tensor.stable for f in found)
    print(
        f"{len(structures)} crystals, strains {strains}, {seconds:.2f} s each; "
        f"failures: {dict(reasons)}"
    )
    for ions, attribute in (("relaxed", "tensor"), ("clamped", "clamped")):
        moduli = np.full((len(found), 2), np.nan)
        for i, one in enumerate(found):
            tensor = getattr(one, attribute, None)
            if tensor is not None and tensor.stable:
                moduli[i] = tensor.moduli("hill")
        print(agreement(f"K, {ions} atoms", moduli[:, 0], bulk))
        print(agreement(f"G, {ions} atoms", moduli[:, 1], shear))
    start = time.process_time()
    minima = [f.cell for f in found if isinstance(f, Elasticity)]
    there = [i for i, f in enumerate(found) if isinstance(f, Elasticity)]
    for ions in ("relaxed", "clamped"):
        states = equations_of_state(minima, potential, StateSettings(relax=None, ions=ions))
        values = np.full(len(found), np.nan)
        values[there] = [
            s.bulk_modulus if isinstance(s, EquationOfState) and s.bulk_modulus > 0 else np.nan
            for s in states
        ]
        print(agreement(f"K, of state, {ions}", values, bulk))
    seconds = (time.process_time() - start) / len(structures)
    print(f"equations of state after the relaxation: {seconds:.2f} s each")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--crystals", type=existing, required=True, help="parquet, see above")
    parser.add_argument("--number", type=int, default=5, help="crystals to compare speeds with")
    parser.add_argument("--check", type=int, metavar="N", help="crystals to compare labels with")
    parser.add_argument("--strains", type=float, nargs="+", default=list(ElasticSettings.strains))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if options.check:
        check(table_of(options.crystals, options.check, labelled=True), tuple(options.strains))
    else:
        compare(crystals_of(table_of(options.crystals, options.number, labelled=False)))


if __name__ == "__main__":
    main()
