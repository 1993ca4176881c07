"""A verb as a process: arguments, signals, standard streams, worker processes, how it begins and ends."""
