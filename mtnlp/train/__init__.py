"""From a Run to trained weights. Read loop.py first; it leans on grads, optim, checkpoint and callbacks.

apart.py is for tasks that share no trained parameter, ledger.py says what each task was given.
"""
