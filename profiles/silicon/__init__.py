"""Tables of measured GPU operators: reading, splitting, fitting the operator models on them, and validating."""
