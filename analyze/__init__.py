"""Store + dictionary -> measurements -> report."""
