"""Looking at what was made: pictures now, acceptance metrics to come."""
