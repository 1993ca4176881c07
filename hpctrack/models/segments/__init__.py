"""Interaction networks on the line graph and on the graph of hits (T. Kortus et al., arXiv:2407.13420)."""
