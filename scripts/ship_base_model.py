"""Makes src/nucleate/data/models/base from a finished pretraining.

    python scripts/ship_base_model.py mymodel train test

``mymodel`` is a folder that ``nucleate pretrain`` has written, ``train`` and ``test`` are prepared
crystals: those it learnt from, and others.
The best weights are rounded to half precision, which halves their size; everything stated on the
card is measured on the rounded ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from nucleate.policies.checkpoint import FORMULAS, load_policy, save_policy
from nucleate.policies.pretraining import STABILITY_EDGES, negative_log_likelihood
from nucleate.structures.datasets import TokenDataset

OUT = Path(__file__).parents[1] / "src/nucleate/data/models/base"
LICENCE = "CC-BY-4.0"
ATTRIBUTION = (
    "Materials Project (A. Jain et al., APL Materials 1, 011002, 2013; CC BY 4.0); Alexandria "
    "(J. Schmidt et al., Adv. Mater. 35, 2210788, 2023; CC BY 4.0); OQMD (S. Kirklin et al., npj "
    "Comput. Mater. 1, 15010, 2015; CC BY 4.0); JARVIS-DFT (K. Choudhary et al., npj Comput. "
    "Mater. 6, 173, 2020; public domain)"
)


def _last(word: str) -> str:
    """An absolute path cut to its last part."""
    return Path(word).name if Path(word).is_absolute() else word


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of a pretraining")
    parser.add_argument("train", type=Path, help="prepared crystals it learnt from")
    parser.add_argument("test", type=Path, help="prepared test crystals")
    options = parser.parse_args()
    policy = load_policy(options.model / "best")
    train, test = TokenDataset.open(options.train), TokenDataset.open(options.test)
    if train.digest != policy.metadata["data_sha256"]:
        raise SystemExit(f"{options.train} is not what {options.model} was trained on")
    rows = [json.loads(line) for line in (options.model / "train.jsonl").open()]
    kept = ("step", "epoch", "validation")
    for name, weight in policy.network.state_dict().items():
        policy.network.state_dict()[name].copy_(weight.half().float())
    parts = negative_log_likelihood(policy, test)
    policy.metadata.pop("weights_sha256", None)
    policy.metadata |= {
        "name": "base",
        "command": [_last(word) for word in policy.metadata["command"]],
        "data_sources": [
            source | {"path": _last(source["path"])} for source in policy.metadata["data_sources"]
        ],
        "licence": LICENCE,
        "attribution": ATTRIBUTION,
        "data_label_counts": train.meta["label_counts"]["e_hull"],
        "data_label_table": {
            key: _last(str(value)) for key, value in train.meta["label_table"].items()
        },
        "stability_edges_eV_per_atom": list(STABILITY_EDGES),
        "weights_precision": "float16",
        "curve": [
            {key: round(value, 4) for key, value in row.items() if key.startswith(kept)}
            for row in rows
        ],
        "test_sha256": test.digest,
        "test_crystals": len(test),
        "test_nats_per_crystal": {"all": round(sum(parts.values()), 4)}
        | {name: round(value, 4) for name, value in parts.items()},
    }
    print(save_policy(policy, OUT, precision=torch.float16))
    shutil.copyfile(options.model / "best" / FORMULAS, OUT / FORMULAS)
    print(json.dumps(policy.metadata["test_nats_per_crystal"]))
    print(f"{sum(file.stat().st_size for file in OUT.iterdir()) / 1e6:.1f} MB in {OUT}")


if __name__ == "__main__":
    main()
