"""Decoder layers of Llama's shape as one autograd function each, for adapters over frozen weights: no weight gradient,
every 4-bit weight made dense once a pass, and what is kept for the backward pass is chosen, not recorded."""
