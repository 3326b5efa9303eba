"""Backbones of three families with one face, and the model that many tasks share."""
