"""Data: rows of every layout, sources, rendering to token ids, prompt groups, packing and the loader."""
