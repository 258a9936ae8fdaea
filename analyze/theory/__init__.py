"""Section 3 of arXiv 2512.05534 as code: every statement becomes numbers that a test can check. All in float64."""
