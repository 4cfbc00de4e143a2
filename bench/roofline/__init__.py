"""The roofline of a machine: its measured peak rates, and the lower bound that they set on the time of a call."""
