"""The data room: from a task's source to batches. See sources, encode, store, mixture and collate, in this
order."""
