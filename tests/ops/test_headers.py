"""Every header of the native kernels includes what it uses: it compiles on its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.ops.cuda_emulation.build import FLAGS, SOURCES, compiler

HEADERS = sorted(path for suffix in ("*.h", "*.cuh") for path in SOURCES.rglob(suffix))


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("header", HEADERS, ids=lambda path: str(path.relative_to(SOURCES)))
def test_header_compiles_alone(header: Path, tmp_path: Path) -> None:
    name = compiler()
    assert name is not None
    source = tmp_path / "alone.cpp"
    source.write_text(f'#include "{header}"\n#include "{header}"\n')  # twice: and it is guarded
    command = [name, *FLAGS, "-fsyntax-only", "-Wno-unused", "-Werror=return-type", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]


def test_there_are_headers_of_all_kinds() -> None:
    names = {str(path.relative_to(SOURCES)) for path in HEADERS}
    assert {"settings.h", "cpu/search_rows.h", "cuda/launch.h", "cuda/search_tile.cuh"} <= names
