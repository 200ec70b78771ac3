"""Train the flow of a two-pass network that is trained already, and write the network with it.

    python scripts/train_flow.py CHECKPOINT OUTPUT CONFIG [KEY=VALUE ...]
    python scripts/train_flow.py stan_tiny runs/flow.safetensors configs/train/stan_tiny_flow.yaml data.root=data/DAVIS

CHECKPOINT gives the network, whose other weights stay as they are. CONFIG says which source is trained (`model.flow`,
with its `flow_settings`), on what clips and noise, for how many steps and at which rate; the rest of it does not
matter. The teacher is the base of the source, or DIS where it has none, in the clean frames. OUTPUT is written every
`trainer.checkpoint_every` steps. Two cores do 80 steps of the configuration above in a minute.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import stan.flow
from stan.config import Config, load
from stan.errors import ConfigError, StanError
from stan.flow import OffsetSource, SteadyFlow
from stan.models import build, read, save
from stan.models import load as load_model
from stan.models.two_pass import TwoPass
from stan.training.flow import train_flow


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="a file or a name of `stan models`")
    parser.add_argument("output", help=".safetensors or .ckpt")
    parser.add_argument("config", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    try:
        run(args.checkpoint, args.output, args.config, args.overrides)
    except StanError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def run(checkpoint: str, output: str, path: str, overrides: list[str]) -> None:
    """See the head of the file."""
    config = load(path, overrides)
    if Path(output).suffix not in (".ckpt", ".safetensors"):  # now, not after the first minutes
        raise ConfigError(f"OUTPUT {output} must end in .safetensors or .ckpt")
    model, teacher = begun(checkpoint, config)
    described = read(checkpoint)[1].get("config")  # how the rest of it was trained
    count = sum(p.numel() for p in model.source.parameters())
    print(
        f"{model.name}: {count:,} parameters of {model.source.name}, {config.trainer.max_steps} steps",
        flush=True,
    )
    start, seen = time.monotonic(), []

    def tell(step: int, loss: float, before: float) -> None:
        seen.append((loss, before))
        last = step == config.trainer.max_steps
        if last or step % config.trainer.log_every == 0:
            now, then = (statistics.mean(x) for x in zip(*seen[-config.trainer.log_every :]))
            took = time.monotonic() - start
            print(f"step {step}: loss {now:.4f}, {then:.4f} without weights, {took:.0f} s", flush=True)
        if last or step % config.trainer.checkpoint_every == 0:
            save(model, output, described)

    train_flow(model, teacher, config, tell)


def begun(checkpoint: str, config: Config) -> tuple[TwoPass, OffsetSource]:
    """The network of a checkpoint with the offset source of a configuration, and that one's teacher."""
    before = load_model(checkpoint)
    if not isinstance(before, TwoPass):
        raise ConfigError(f"{checkpoint} is {before.name}, which has no passes: give stan_tiny or stan_small")
    wanted = {key: config.model.given[key] for key in ("flow", "flow_settings") if key in config.model.given}
    model = build(before.name, **{**before.settings, "flow_settings": {}, **wanted})
    assert isinstance(model, TwoPass)
    weights, fresh = before.state_dict(), model.state_dict()
    own = {key for key in fresh if key.startswith("source.")}
    if all(key in weights and weights[key].shape == fresh[key].shape for key in own):
        own = set()  # it goes on from there
    model.load_state_dict({key: fresh[key] if key in own else weights[key] for key in fresh})
    model.trained = before.trained
    source = model.source
    return model, source.base if isinstance(source, SteadyFlow) else stan.flow.build("dis", preset="smooth")


if __name__ == "__main__":
    main()
