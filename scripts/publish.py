"""Make a trained checkpoint one of the weights that come with the package, with its facts and its model card.

    python scripts/publish.py runs/stan_tiny/last.ckpt checkpoints/stan_tiny.yaml --results runs/eval/results.json

Reads what only a person knows from the YAML file (summary, commands, hours, machine, limits, speed as measured), the
figures from the results of `stan evaluate`, everything else from the checkpoint. Writes NAME.safetensors,
NAME.json and NAME.md beside the YAML file, NAME being its own name.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from stan import models
from stan.files import write_text
from stan.models.release import portable
from stan.models.shipped import Shipped


def main() -> None:
    """Publish."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="of a training run")
    parser.add_argument("about", type=Path, help="YAML file: checkpoints/NAME.yaml")
    parser.add_argument(
        "--results", type=Path, required=True, help="results.json of `stan evaluate`; the first method is it"
    )
    args = parser.parse_args()

    about: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(args.about))  # type: ignore[assignment]
    results = json.loads(args.results.read_text())
    model = models.load(args.checkpoint)
    assert model.trained is not None
    model.trained = dataclasses.replace(model.trained, steps=about["steps"])  # of all stages
    _, record = models.read(args.checkpoint)
    config = as_recipe(record["config"])
    weights = models.save(model, args.about.with_suffix(".safetensors"), config)
    facts = facts_of(model, about, results)
    write_text(args.about.with_suffix(".json"), json.dumps(facts, indent=2) + "\n")
    published = Shipped(args.about.stem, weights, facts)
    write_text(args.about.with_suffix(".md"), card(published, record, about, results))
    print(f"{weights}: {published.megabytes:.1f} MB, {facts['parameters']:,} parameters, {facts['psnr']}")


def as_recipe(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the training as a reader would write it, without places of one machine."""
    data = {**config["data"], "root": "data/DAVIS", "cache": None}
    named = {"data": data, "output": f"runs/{Path(config['output']).name}", "checkpoint": None}
    return portable({**config, **named})  # type: ignore[no-any-return]


def facts_of(model: models.VideoDenoiser, about: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """What `stan models` shows."""
    ours = results["methods"][0]["name"]
    assert model.trained is not None
    return {
        "summary": about["summary"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": model.trained.to_dict(),
        "devices": about["devices"],
        "protocol": f"{results['protocol']}, {about['data']}",
        "psnr": {
            f"{row['sigma']:g}": round(row["psnr"], 4) for row in results["means"] if row["method"] == ours
        },
        "ssim": {
            f"{row['sigma']:g}": round(row["ssim"], 4) for row in results["means"] if row["method"] == ours
        },
        "speed": about["speed"],
    }


def card(published: Shipped, record: dict[str, Any], about: dict[str, Any], results: dict[str, Any]) -> str:
    """The model card."""
    facts, trained = published.facts, published.facts["trained"]
    low, high = trained["sigma"]
    made = (
        f"{trained['kind']} noise of sigma {low:g} to {high:g}: {trained['steps']:,} steps, {about['hours']}"
    )
    lines = [
        f"# {published.name}",
        "",
        about["summary"],
        "",
        f"- network `{record['model']['name']}`, {facts['parameters']:,} parameters, {published.megabytes:.1f} MB",
        f"- trained for {made}",
        f"- on {about['machine']}",
        f"- made by stan {record['version']}",
        "",
        "## Use",
        "",
        "```",
        f"stan denoise in.mp4 out.mp4 --checkpoint {published.name}",
        "```",
        "",
        f"In Python `stan.load({published.name!r})`.",
        "",
        "## Results",
        "",
        f"Protocol `{results['protocol']}` on {about['data']}: PSNR in dB (SSIM). Reproduced by",
        "",
        "```",
        about["evaluate"],
        "```",
        "",
        *table(results),
        "",
        "## Training",
        "",
        *about["recipe"].rstrip().splitlines(),
        "",
        "```",
        *[str(command) for command in about["train"]],
        "```",
        "",
        "## Limits",
        "",
        *[f"- {limit}" for limit in about["limits"]],
        "",
        "## Data and licence",
        "",
        about["licence"].rstrip(),
        "",
        "## Speed",
        "",
        "| device | size | frames a second |",
        "|---|---|---|",
        *[f"| {row['device']} | {row['size']} | {row['frames_per_second']:g} |" for row in about["speed"]],
    ]
    return "\n".join(lines) + "\n"


def table(results: dict[str, Any]) -> list[str]:
    """Rows by method and sequence, columns by noise level."""
    levels = list(dict.fromkeys(row["sigma"] for row in results["means"]))
    rows = ["| method | sequence | " + " | ".join(f"{level:g}" for level in levels) + " |"]
    rows.append("|---|---|" + "---|" * len(levels))
    for method in results["methods"]:
        mine = [row for row in results["sequences"] if row["method"] == method["name"]]
        for name in dict.fromkeys(row["sequence"] for row in mine):
            cells = [
                next(r for r in mine if r["sequence"] == name and r["sigma"] == level) for level in levels
            ]
            rows.append(f"| {method['name']} | {name} | " + " | ".join(cell(c) for c in cells) + " |")
        means = [
            next(r for r in results["means"] if r["method"] == method["name"] and r["sigma"] == s)
            for s in levels
        ]
        rows.append(f"| {method['name']} | **mean** | " + " | ".join(f"**{cell(m)}**" for m in means) + " |")
    return rows


def cell(row: dict[str, Any]) -> str:
    """PSNR and SSIM of a row."""
    return f"{row['psnr']:.2f} ({row['ssim']:.3f})"


if __name__ == "__main__":
    main()
