"""The benchmark of training: how fast a configuration trains here, and where the time goes (`stan bench train`)."""

from stan.experiments.training_bench.bench import Report, Row, Settings, run_bench
from stan.experiments.training_bench.report import print_tables

__all__ = ["Report", "Row", "Settings", "print_tables", "run_bench"]
