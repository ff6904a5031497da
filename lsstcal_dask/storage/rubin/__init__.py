"""The calibration files of Rubin's software, read and written: one module per format (¶2, ¶3, ¶5-¶7, ¶11).

A file is a table or a few, with the same entries in ``meta``; it is ECSV, FITS (an empty primary, then tables) or YAML.
"""
