"""The model: text and image encoders, their fusion, the tile decoder, and the Restorer around them. PyTorch only."""
