"""What runs a model: hooks, and the functions behind the command-line tools."""
