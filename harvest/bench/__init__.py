"""The Linear Representation Bench: rows whose ground-truth features are known (arXiv 2512.05534, section 5.1)."""
