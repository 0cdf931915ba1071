"""Neighbours' mechanisms beside the dense detector that they start from: settings, results, page."""
