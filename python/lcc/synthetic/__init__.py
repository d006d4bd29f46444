"""Worlds made of chance: texts, and questions whose answers are known. Imports nothing of the package."""
