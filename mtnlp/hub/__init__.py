"""Bundles and the places they go to and come from: folders, hub repositories, whatever fsspec reaches."""
