"""What a machine allows at best: its ceilings, and the least time of a call under them."""
