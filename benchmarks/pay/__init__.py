"""Dense detectors and mixtures that start from them: which settings, what came out, and the page of it."""
