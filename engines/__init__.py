"""The network and what runs it. Knows arrays, not frames."""
