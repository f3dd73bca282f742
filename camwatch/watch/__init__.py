"""Watching a run: snapshots, pictures, archive and writers."""
