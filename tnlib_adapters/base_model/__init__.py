"""What is known of the model that is adapted: its linear layers, and what they do in it."""
