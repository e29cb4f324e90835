"""Archive damage, synthesised on tensors: for training, evaluation and samples."""
