"""What people do with a recipe and a run folder: train, load, predict, evaluate, check."""
