"""What vision-language models look at, what they invent, and what changes when heads or image tokens are reinforced."""
