"""Names of the recordings in the folder that the `clips` fixture writes."""

LENGTHS = {"a.wav": 1.5, "b.flac": 0.4, "sub/c.ogg": 2.0, "sub/deep/d.wav": 1.0, "sub/e.mp3": 3.0}
"""Valid recordings, and their seconds."""
BAD = ("bad.wav", "empty.flac", "sub/short.wav")
"""Recordings that are rejected."""
