"""Tucker decompositions: a core tensor times one factor per mode."""
