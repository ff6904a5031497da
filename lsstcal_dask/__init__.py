"""Make and apply the calibration products of a CCD mosaic telescope (Lupton 2016)."""
