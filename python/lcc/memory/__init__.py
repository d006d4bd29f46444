"""The artefact: a memory, its file, and the ways to attach, export and quantise it."""
