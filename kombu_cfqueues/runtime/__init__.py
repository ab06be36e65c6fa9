"""What the library needs of a process: time, randomness, threads and forks."""
