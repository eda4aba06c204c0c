"""The driver: from a request to a proved artefact, with the siblings it wires together."""
