"""What the pages of the panel show: gathered from the nodes, in words and in pictures."""
