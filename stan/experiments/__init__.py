"""The paper's experiments and the operator's benchmark."""
