"""An OpenAI-compatible endpoint over any engine that speaks the protocol of `planner.serving.engine`."""
