"""The rhythm of reasoning: how attention moves through a trace, which tokens plan, which anchor, and their credit."""
