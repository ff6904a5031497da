"""Background, photometric flattening and final photometry (Secs. 3.9-3.11, App. D)."""
