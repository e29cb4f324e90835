"""Training: images in memory, the loss, the loop, checkpoints. Plain PyTorch inside."""
