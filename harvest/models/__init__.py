"""Models and their sites: the only place that imports transformers."""
