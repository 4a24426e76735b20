"""What `tnlib survey` asks of this package."""
