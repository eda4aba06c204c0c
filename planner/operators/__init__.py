"""How long the operators of a transformer take on a GPU: matrix products, attention, collectives."""
