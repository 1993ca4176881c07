"""results.json: what it holds, as text, and several of them beside each other."""
