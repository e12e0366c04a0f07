"""Recordings of event cameras and of sound, and sequences, from their own files."""
