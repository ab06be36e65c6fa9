"""What publishing costs: this transport beside the ways that people use without it.

``python -m benchmarks`` runs all of it.
"""
