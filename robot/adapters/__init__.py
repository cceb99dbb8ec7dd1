"""Policies of other libraries as members of a composition; each file imports its host only when it loads one of its checkpoints."""
