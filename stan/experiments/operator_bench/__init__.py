"""The operator's benchmark: ours against four ways of the same in PyTorch, in one run (`stan bench op`)."""
