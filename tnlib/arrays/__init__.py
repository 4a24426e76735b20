"""What NumPy and torch arrays have in common, and the checks of what users pass."""
