"""From a Run to trained weights. Read loop.py first; it leans on grads, optim, checkpoint and callbacks."""
