"""What the page Bench asks and reads: an intervention in parts, the line that tries it, and what came of it."""
