"""Modules of users: ``imports: [my_parts]`` makes the parts that they register known by name.

Code is found by module name alone, in the working folder or in the environment, as Python finds its own; a checkpoint
holds such names, never code. What is imported is told on standard error.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from stan.errors import ConfigError, short

_files: set[Path] = set()
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def import_modules(names: Iterable[str], origin: str, quiet: bool = False) -> list[str]:
    """Import modules by name; those that are imported already stay as they are.

    Args:
        names: module names, such as ``my_parts`` or ``lab.losses``; a file ``my_parts.py`` in the working folder
            comes before one of the environment.
        origin: who asks for them, for messages.
        quiet: do not say which file was imported.

    Returns:
        a line for each module that is not found; whoever asks knows whether that is an error.

    Raises:
        ConfigError: a name that is none, or a module that fails.
    """
    missing = []
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{origin}: {short(name)} is no module name: my_parts for my_parts.py in the working folder, "
                "lab.parts for a package"
            )
        if name not in sys.modules and not _import(name, origin, quiet):
            missing.append(
                f"{origin} needs the module {name!r}, which is neither in {Path.cwd()} nor in the environment: run "
                f"where {name.partition('.')[0]}.py lies, or install it"
            )
    return missing


def imported_files() -> list[Path]:
    """The files of the modules that were imported, and of what these imported from beside them."""
    return sorted(_files)


def _import(name: str, origin: str, quiet: bool) -> bool:
    """Import a module that is not imported yet; False if there is none."""
    here, before = str(Path.cwd()), set(sys.modules)
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return False
        raise ConfigError(f"{origin}: module {name!r} fails: {_where(error)}") from error
    except Exception as error:
        raise ConfigError(f"{origin}: module {name!r} fails: {_where(error)}") from error
    finally:
        sys.path.remove(here)
        if (
            here not in sys.path
        ):  # last: for what the module imports later, and hiding nothing of the environment
            sys.path.append(here)
    place = getattr(module, "__file__", None) or "Python itself"
    home = Path(place).parent
    new = [getattr(sys.modules[key], "__file__", None) for key in set(sys.modules) - before]
    _files.update(path for path in map(Path, filter(None, new)) if home in path.parents)
    if not quiet:
        print(f"stan: {origin} imports {name} from {place}", file=sys.stderr)
    return True


def _where(error: Exception) -> str:
    """An error of a user's module with its place: "NameError: name 'x' is not defined (my_parts.py, line 3)"."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
    return f"{type(error).__name__}: {error}{place}"
