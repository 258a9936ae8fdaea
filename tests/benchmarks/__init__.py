"""Ours against a peer or a floor, side by side on one machine: `make bench`."""
