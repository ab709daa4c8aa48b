"""Names of the recordings in the folder that the tests of predictions share."""

LENGTHS = {"a.wav": 1.5, "b.flac": 0.4, "sub/c.ogg": 2.0, "sub/deep/d.wav": 1.0, "sub/e.mp3": 3.0}
"""Those that can be answered, and their seconds."""
BAD = ("bad.wav", "empty.flac", "sub/short.wav")
"""Those that cannot."""
