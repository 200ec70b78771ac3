"""The benchmark of training: how fast a configuration trains here, and where the time goes (`stan bench train`)."""
