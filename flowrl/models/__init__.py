"""Adapters: one diffusers pipeline a file, each a text-conditioned velocity field with `encode` and `decode`."""
