"""Methods: one file each, a frozen dataclass whose fields are its options. `passes.pipeline` has them in order."""
