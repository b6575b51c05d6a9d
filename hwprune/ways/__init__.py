"""Ways of pruning beside one shot: step by step, during training, by masks."""
