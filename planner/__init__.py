"""The compiler: what a model, a goal and a machine are; how a plan is found, kept and proved."""
