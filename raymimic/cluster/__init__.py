"""The Ray cluster: joining it, its capacity, reserving resources, noticing that it has ended."""
