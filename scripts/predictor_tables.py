"""The tables that the predictors that ship learnt from.

    python scripts/predictor_tables.py DATA OUT

DATA holds ``crystals/`` (train, val, test: crystals with band gaps and ids of the Materials
Project, split by formula) and ``properties/`` (ICSD flags, dielectric constants). The commands that
read OUT are on the cards, ``predictor.json``.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pandas as pd

PARTS = {"train": "train-*of3.parquet", "val": "val.parquet", "test": "test.parquet"}
CRYSTAL = ["id", "lattice", "numbers", "frac_coords"]
COPIED = (
    "dielectric_petousis2017.parquet",
    "dielectric_mp_dfpt_2585.parquet",
    "matbench_dielectric.parquet",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with crystals/ and properties/")
    parser.add_argument("out", type=Path, help="folder to write")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    properties = options.data / "properties"
    for name in COPIED:
        shutil.copyfile(properties / name, options.out / name)
    flags = pd.read_parquet(properties / "mp_synthesizability_clscore.parquet")
    flags = flags.set_index("material_id").icsd
    for part, pattern in PARTS.items():
        files = sorted((options.data / "crystals").glob(pattern))
        crystals = pd.concat(map(pd.read_parquet, files))
        crystals = crystals[crystals.source.str.startswith("MP")]
        known = crystals.band_gap.notna() & crystals.band_gap_src.str.startswith("MP", na=False)
        gaps = crystals[known][[*CRYSTAL, "band_gap"]]
        gaps.to_parquet(options.out / f"band_gap-{part}.parquet")
        flagged = crystals.rename(columns={"icsd": "any_list"}).join(flags, on="id", how="inner")
        reported_later = flagged.any_list.eq(True).fillna(False).astype(bool) & ~flagged.icsd
        flagged = flagged[~reported_later][[*CRYSTAL, "icsd"]]
        flagged.to_parquet(options.out / f"icsd-{part}.parquet")
        print(f"{part}: {len(gaps):,} gaps, {len(flagged):,} flags, {flagged.icsd.mean():.1%} true")


if __name__ == "__main__":
    main()
