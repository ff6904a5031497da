"""The virtual observatory: inputs with known truth (Lupton 2016, App. A)."""
