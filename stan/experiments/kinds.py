"""Imports the modules that hold experiments, each of which enters itself into `stan.registry.experiments`."""

from stan.experiments import comparison as comparison
from stan.experiments import search_cost as search_cost
from stan.experiments.alignment import experiment as experiment
