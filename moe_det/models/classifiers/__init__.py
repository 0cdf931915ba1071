"""The image classifiers of the papers."""
