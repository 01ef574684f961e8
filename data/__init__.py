"""Data: reading, checking, splitting, neighbours and batches. Numpy only: no device is touched."""
