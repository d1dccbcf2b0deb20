"""Networks: what carries a machine's frames, between its network cards and the host."""
