"""The paper's alignment experiment: how well do matches found in noise bring the clean neighbour into place?"""
