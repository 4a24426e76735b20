"""What the commands of ``tnlib-adapters`` do: each takes the options and returns a text."""
