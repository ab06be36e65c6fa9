"""Kombu's side: a connection, its channels, and what they publish and deliver."""
