"""Looking inside a model: Subject, Anatomy, Prompt, Tap, Readers, generation. Knows models, not questions."""
