"""Write docs/configuration.md, the table of resuming in docs/training.md and the comments of the files under configs/,
from the declarations.

python scripts/config_page.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from stan import registry
from stan.config import documented_keys
from stan.config.printing import value_text
from stan.config.schema import Resumed, on_resuming
from stan.settings import REQUIRED, Setting, words

ROOT = Path(__file__).resolve().parents[1]

HEAD = """# Configuration

Every run is described by one configuration. Typed dataclasses in `stan/config/schema.py` are its schema, YAML
files under `configs/` fill it in, and `key=value` words on the command line lie on top:

```
stan train configs/train/davis_tiny.yaml noise.sigma=0..50 trainer.max_steps=300 data.root=/data/DAVIS
stan config configs/train/davis_tiny.yaml noise.sigma=0..50     # what that comes to, with every key explained
```

A file may `include:` others, relative to itself, which lie underneath in their order. An unknown key, a wrong
type or an impossible combination stops at once and names the key, the value and the nearest valid name. The
resolved configuration is saved as `config.yaml` in the output folder and, as plain data, in every checkpoint.

Numbers in lists are written `[10,30]`, and one item stands for a list of one; a range of noise levels is written
`0..50`; `null` means "not set".

**A name brings its settings.** `model.name`, `noise.kind` and `loss.name` name a [component](#components), whose own
settings stand in the section's `settings`, those of the network's parts in `flow_settings`, `attention_settings` and
`aggregation_settings` inside them. Say only what departs: `model.name=stan_small model.settings.window=7`. `stan
config` shows the whole. Whoever names another component than a file underneath leaves the settings behind that were
written for that one (a line says so).

**References and the environment.** `${data.root}` in a YAML file or a word stands for the value of another key,
`${oc.env:DATA}` for an environment variable (`${oc.env:DATA,data/DAVIS}` with a default). What they come to is what is
saved, in `config.yaml` and in checkpoints, so that the record says what was done: never put a secret there. A
checkpoint's configuration is read as it stands; nothing in it is replaced.

**Parts of your own.** `imports: [my_parts]` loads your module, whose networks, losses, noise kinds and so on are then
known by name here: see [extending](extending.md).

This page is written by `scripts/config_page.py` from the schema and the components.
"""

TABLES = (
    ("networks", "`model.name`"),
    ("sources", "`model.flow`"),
    ("alignments", "`model.settings.attention`"),
    ("aggregations", "`model.settings.aggregation`"),
    ("layouts", "`data.kind`"),
    ("tasks", "`task`"),
    ("noises", "`noise.kind`"),
    ("losses", "`loss.name`"),
    ("protocols", "`evaluation.protocol`"),
    ("metrics", "figures of an evaluation"),
    ("baselines", "`checkpoint` in evaluation, beside files"),
)


def row(key: str, setting: Setting) -> str:
    """A line of a table."""
    default = "" if setting.default is REQUIRED else f"`{value_text(setting.default)}`"
    return f"| `{key}` | {default} | {words(setting.type)} | {setting.help} |"


def key_lines() -> list[str]:
    """The tables of all keys."""
    lines = ["\n## Top level\n\n| key | default | value | meaning |\n|---|---|---|---|"]
    for key, setting in documented_keys():
        if setting.section:
            lines.append(
                f"\n## `{key}`: {setting.help}\n\n| key | default | value | meaning |\n|---|---|---|---|"
            )
        else:
            lines.append(row(key, setting))
    return lines


def component_lines() -> list[str]:
    """The tables of all components and their settings."""
    lines = ["\n## Components"]
    for table, place in TABLES:
        entries = getattr(registry, table)
        lines.append(f"\n### {entries.kind}: {place}\n")
        lines += [f"- `{name}`: {entries.component(name).summary}" for name in entries]
        declared: dict[int, tuple[list[str], Mapping[str, Setting]]] = {}
        for name in entries:
            declares = entries.component(name).declares
            if declares is not None and entries.settings(name):
                declared.setdefault(id(declares), ([], entries.settings(name)))[0].append(name)
        for names, settings in declared.values():
            lines.append(f"\nSettings of {', '.join(f'`{name}`' for name in names)}")
            if len(names) > 1:
                own = [
                    (name, key, s.default) for name in names[1:] for key, s in entries.settings(name).items()
                ]
                for name in names[1:]:
                    changed = [
                        f"`{key}={value_text(value)}`"
                        for of, key, value in own
                        if of == name and value_text(value) != value_text(settings[key].default)
                    ]
                    lines[-1] += f"; `{name}` has {', '.join(changed)}"
            lines.append("\n| setting | default | value | meaning |\n|---|---|---|---|")
            lines += [row(key, setting) for key, setting in settings.items()]
    return lines


def resuming_table() -> str:
    """What a resumed run does with which keys; a section whose keys all have it in common stands for them."""
    lines = ["| keys | a resumed run |", "|---|---|"]
    found = dict(on_resuming())
    alike: dict[str, set[Resumed]] = {}
    for key, resumed in found.items():
        alike.setdefault(key.partition(".")[0], set()).add(resumed)
    for resumed in Resumed:
        names = [
            section if len(alike[section]) == 1 else key
            for key, of in found.items()
            if of is resumed
            for section in [key.partition(".")[0]]
        ]
        lines.append(f"| {', '.join(f'`{name}`' for name in dict.fromkeys(names))} | {resumed.value} |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """docs/training.md with the table of resuming as the schema declares it."""
    table = re.compile(r"^\| keys \| a resumed run \|\n(?:\|.*\n)+", re.M)
    return table.sub(lambda _: resuming_table(), page)


def commented(text: str) -> str:
    """A configuration file with the meaning and the default of each key as its comment."""
    known = dict(documented_keys())
    lines, path = [], []
    for line in text.splitlines():
        match = re.match(r"( *)(\w+):(.*?)(  # .*)?$", line)
        if match and not line.startswith("#"):
            path = [*path[: len(match[1]) // 2], match[2]]
            setting = known.get(".".join(path))
            if setting is not None:
                default = "" if setting.section else f" (default {value_text(setting.default)})"
                line = f"{match[1]}{match[2]}:{match[3]}  # {setting.help}{default}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page and the comments."""
    page = ROOT / "docs" / "configuration.md"
    page.write_text("\n".join([HEAD, *key_lines(), *component_lines()]) + "\n")
    print(page)
    training = ROOT / "docs" / "training.md"
    training.write_text(with_table(training.read_text()))
    for path in sorted(
        set((ROOT / "configs").rglob("*.yaml")) - set((ROOT / "configs/experiments").iterdir())
    ):
        path.write_text(commented(path.read_text()))


if __name__ == "__main__":
    main()
