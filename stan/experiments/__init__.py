"""The paper's experiments and the benchmarks."""
