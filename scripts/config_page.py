"""Write docs/configuration.md from the schema: python scripts/config_page.py."""

from __future__ import annotations

from pathlib import Path

from stan.config import documented_keys

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

Numbers in lists are written `[10,30]`; a range of noise levels is written `0..50`; `null` means "not set".

This page is written by `scripts/config_page.py` from the schema.
"""


def main() -> None:
    """Write the page."""
    lines = [HEAD]
    for key, text, default in documented_keys():
        if (
            default is None
            and "." not in key
            and any(k.startswith(f"{key}.") for k, _, _ in documented_keys())
        ):
            lines.append(f"\n## `{key}`: {text}\n\n| key | default | meaning |\n|---|---|---|")
            continue
        if key == "seed":
            lines.append("\n## Top level\n\n| key | default | meaning |\n|---|---|---|")
        shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
        lines.append(f"| `{key}` | `{shown}` | {text} |")
    page = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
    page.write_text("\n".join(lines) + "\n")
    print(page)


if __name__ == "__main__":
    main()
