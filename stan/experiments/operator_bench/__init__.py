"""The operator's benchmark: ours against three ways of the same in PyTorch, in one run (`stan bench op`)."""

from stan.experiments.operator_bench.bench import Settings, run_bench
from stan.experiments.operator_bench.cases import Case, table
from stan.experiments.operator_bench.report import print_tables

__all__ = ["Case", "Settings", "print_tables", "run_bench", "table"]
