"""`make full-proof`: the full profile's own commands at full size, on one machine without a GPU, a hub or the data sets."""
