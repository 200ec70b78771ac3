"""Imports the modules that hold experiments, each of which enters itself into `stan.registry.experiments`."""

from stan.experiments import alignment as alignment
