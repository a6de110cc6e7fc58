"""Judge a model, or crystals in files: valid, stable, unique, novel; one against another.

For example::

    import nucleate

    result = nucleate.evaluate("runs/stability", against="base", n=1000, seeds=(1, 2, 3))
    print(result.markdown)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nucleate.design import potential_pool, training_formulas
from nucleate.errors import InputError
from nucleate.evaluation import compare as comparison
from nucleate.evaluation.judge import Energies, hull_cards, judge
from nucleate.evaluation.summary import Evaluation
from nucleate.evaluation.sun import KnownCrystals
from nucleate.models import model_folder, names_model
from nucleate.policies.checkpoint import FORMULAS, load_policy
from nucleate.properties.stability import EnergyAboveHull
from nucleate.recipe import ConditionSettings, Recipe
from nucleate.results import JUDGING_SEEDS
from nucleate.samples import Samples, condition_from_recipe, sample
from nucleate.scoring import read_all
from nucleate.store.cache import EvaluationCache
from nucleate.structures.identity import ReferenceSet
from nucleate.structures.parsing import cell_digest, to_cell
from nucleate.structures.writing import check_place
from nucleate.structures.wyckoff import encode

DEFAULT_HULLS = ("mp2020", "chgnet")


@dataclass(frozen=True)
class Judgement:
    """What a judging gave.

    Attributes:
        evaluations: one for each seed, or one for a set of files.
        against: the same of what it was compared with.
        comparison: see :func:`nucleate.evaluation.compare.compare`; None without ``against``.
    """

    evaluations: list[Evaluation]
    against: list[Evaluation]
    comparison: dict[str, Any] | None

    @property
    def markdown(self) -> str:
        """The comparison as a table; empty if there is none."""
        return "" if self.comparison is None else comparison.to_markdown(self.comparison)


def evaluate(
    source: str | Path | Sequence[str | Path],
    *,
    against: str | Path | None = None,
    n: int = 1000,
    seeds: Sequence[int] = (1,),
    hulls: Sequence[str] = DEFAULT_HULLS,
    reference: str | Path | None = None,
    condition: ConditionSettings | None = None,
    stable_below: float = 0.1,
    relax: bool = False,
    workers: int = 0,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Judgement:
    """Judge samples of a model, or the crystals of files.

    Args:
        source: a model (shipped name, folder, or folder of a run), or files of crystals.
        against: a model to compare with, at equal sample count.
        n: samples for each seed; ignored for files, of which all count.
        seeds: one set of samples for each; files are compared with that of the first alone.
        hulls: reference hulls; the first is the main judge.
        reference: what "novel" is measured against: a prepared dataset, a saved reference set or
            files of crystals; by default the formulas that the model was trained on.
        condition: what sampling is held to.
        stable_below: eV/atom.
        relax: relax crystals before judging.
        workers: processes that evaluate; 0 for one on each core.
        out: folder for the tables; written when all is judged.
        cache: file of evaluations, such as ``runs/evaluations.sqlite``: energies that it knows are
            not computed again, and what is computed is kept there. Those of relaxed crystals are
            computed anew.
        on_stage: called with a line for each stage.

    Raises:
        InputError: nothing to judge, no seed or one twice, or no such hull or reference.
        RecipeError: two different hulls of one name, or a potential on another scale.
        CheckpointError: a model that can't be read.
        StorageError: ``out`` can't be written.
    """
    say = on_stage or (lambda line: None)
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    if not sources:
        raise InputError("Nothing to judge.", fix="Name a model or files of crystals.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(
            f"The seeds {', '.join(map(str, seeds)) or '(none)'} can't be used.",
            "Each gives one set of samples, and equal seeds equal ones.",
            "Name different seeds, such as 1,2,3.",
        )
    if out is not None:
        check_place(out)
    model = sources[0] if len(sources) == 1 and names_model(sources[0]) else None
    condition = condition or ConditionSettings()
    named = model if model is not None else against
    known = _reference(reference, named)
    sets: list[tuple[str, str | Path, int | None]] = []
    for name, which in (("against", against), ("judged", model)):
        if which is not None:
            load_policy(model_folder(which))  # a broken model is found before any work
            sets += [(f"{name}-{seed}", which, seed) for seed in seeds]
    files = None if model is not None else _from_files(sources)
    if files is not None:
        n, named_files = len(files.structures), ", ".join(map(str, sources))
        sets = [*[entry for entry in sets if entry[2] == seeds[0]], ("judged", named_files, None)]
    judged: dict[str, list[Evaluation]] = {"judged": [], "against": []}
    with (
        nullcontext() if cache is None else EvaluationCache(cache, "evaluate") as kept,
        potential_pool(workers=workers) as potential,
    ):
        main, *others = [EnergyAboveHull(potential, hull, relax=relax) for hull in hulls]
        hull_cards([main, *others])
        energies = Energies(main, cache=kept)
        for name, which, seed in sets:
            say(f"judging {n} crystals of {which}" + ("" if seed is None else f", seed {seed}"))
            drawn = files if seed is None else _draw(which, n, condition, seed)
            assert drawn is not None
            extra: dict[str, Any] = {"source": str(which)}
            if seed is not None:
                extra |= {"seed": seed, "condition": condition.model_dump(mode="json")}
            evaluation = judge(
                drawn,
                main,
                hulls=others,
                energies=energies,
                reference=known,
                name=name,
                stable_below=stable_below,
                extra=extra,
            )
            judged[name.split("-")[0]].append(evaluation)
    compared = None
    if judged["against"]:
        compared = comparison.compare(judged["against"], judged["judged"])
    result = Judgement(judged["judged"], judged["against"], compared)
    if out is not None:
        write_judgement(result, Path(out))
    return result


def write_judgement(result: Judgement, folder: Path) -> None:
    """Tables and summaries of every set, and the comparison if there is one."""
    for evaluation in (*result.evaluations, *result.against):
        comparison.write_evaluation(evaluation, folder)
    if result.comparison is not None:
        comparison.write_comparison(result.comparison, folder)


def _draw(which: str | Path, n: int, condition: ConditionSettings, seed: int) -> Samples:
    policy = load_policy(model_folder(which))
    held = condition_from_recipe(Recipe(condition=condition), policy)
    return sample(policy, n, held, seed=JUDGING_SEEDS + seed)


def _from_files(sources: Sequence[str | Path]) -> Samples:
    """Crystals of files as samples; what can't be read counts as undecodable."""
    records = list(read_all(sources))
    structures = [record.structure for record in records]
    reasons = [record.reason for record in records]
    found = [structure for structure in structures if structure is not None]
    if not found:
        first = f"{records[0].source}: {records[0].reason}" if records else ""
        raise InputError(f"{', '.join(map(str, sources))}: no crystal found.", first)
    encoded, _ = encode(found)
    place = np.full(len(structures), -1)
    place[[i for i, structure in enumerate(structures) if structure is not None]] = np.arange(
        len(found)
    )
    batch = encoded[np.maximum(place, 0)]
    for array in (batch.space_group, batch.wyckoff, batch.species):
        array[place < 0] = 0
    digests = ["" if s is None else cell_digest(to_cell(s)).hex() for s in structures]
    return Samples(batch, structures, reasons, np.full(len(structures), np.nan), digests)


def _reference(path: str | Path | None, model: str | Path | None) -> KnownCrystals | None:
    """What novelty is measured against; None where nothing is known."""
    if path is None:
        if model is None:
            return None
        folder = model_folder(model)
        if not (folder / FORMULAS).is_file():
            return None
        return training_formulas(load_policy(folder), folder)
    return ReferenceSet.open(path)
