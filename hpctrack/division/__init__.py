"""One event over several ranks: who owns which hit, what each rank holds, and what they pass each other."""
