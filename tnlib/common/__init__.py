"""What both packages use and has nothing to do with arrays."""
