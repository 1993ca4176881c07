"""Which events form a step and who takes them: numpy alone, without communication."""
