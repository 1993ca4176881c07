"""Ranks: where they come from, how they meet, what they tell each other, how a model is spread over them."""
