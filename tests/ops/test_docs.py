"""The example in docs/operator.md runs and prints what it says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from stan import ops

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "operator.md").read_text()


def test_example(capsys: pytest.CaptureFixture) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    scope: dict = {}
    exec(code, scope)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "[[0.0, 0.0], [-2.0, -1.0], [2.0, 1.0]]"
    assert printed[1] == "[1, 2, 0]"
    assert max(abs(float(n)) for n in printed[2].strip("[]").split(",")) == 0
    for name, shape in re.findall(r"^(\w+) = .*# (\(.*\))$", code, re.M):
        assert str(tuple(scope[name].shape)) == shape


def test_defaults_in_the_table() -> None:
    rows = re.findall(
        r"^\| (`\w+`[^|]*) \| ([^|]+) \|", PAGE.split("| setting | default |")[1].split("##")[0], re.M
    )
    signature = inspect.signature(ops.shifted_nls).parameters
    told = {}
    for names, values in rows:
        for name, value in zip(re.findall(r"`(\w+)`", names), values.strip().strip("`").split(", ")):
            told[name] = value.strip('"')
    told = {name: value for name, value in told.items() if name in signature}
    actual = {n: str(p.default) for n, p in signature.items() if p.kind is p.KEYWORD_ONLY}
    assert told == actual
