"""What a run writes down: crystals, evaluations, checkpoints."""
