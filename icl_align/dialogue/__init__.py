"""The world of dialogues: tokens, a latent concept, rounds of self-correction, an exact reader."""
