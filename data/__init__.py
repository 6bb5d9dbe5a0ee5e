"""What ships with headscope: haystacks, needles, scenes and weights, each with its source and licence."""
