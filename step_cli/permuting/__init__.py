"""Which channels of a network may change places, proved from its graph."""
