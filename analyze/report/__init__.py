"""HTML from measurement files, and from nothing else."""
