"""From texts to memories: one text at one ratio, one text at any ratio, many texts."""
