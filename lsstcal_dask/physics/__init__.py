"""Laws that more than one room needs."""
