"""Looking at what was made: pictures, acceptance metrics and their report."""
