"""GroupMixFormer in PyTorch: the model, its checkpoints and its export. The only room that imports torch."""
