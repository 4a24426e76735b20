"""How a network method enters PEFT: registration, configuration, one tuner and one layer."""
