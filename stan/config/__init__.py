"""The configuration: typed dataclasses are the schema, YAML files and ``key=value`` words fill it in.

``load("configs/train/davis_tiny.yaml", ["noise.sigma=50"])`` reads a file and those it includes, lays the
words of the command line over it, checks every key, type and combination, and gives a :class:`Config`. A
problem is one :class:`~stan.errors.ConfigError` line: key, value and the nearest valid name.
"""

from stan.config.loading import build, builtin_configs, from_dict, load, read_tree, to_dict
from stan.config.printing import documented_keys, to_yaml, value_text
from stan.config.schema import Config, ModelConfig

__all__ = [
    "Config",
    "ModelConfig",
    "build",
    "builtin_configs",
    "documented_keys",
    "from_dict",
    "load",
    "read_tree",
    "to_dict",
    "to_yaml",
    "value_text",
]
