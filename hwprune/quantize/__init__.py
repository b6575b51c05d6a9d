"""int8: a trained network as integer arithmetic alone, and what that costs in accuracy."""
