"""`make gpu`: the tests, the sanitizers and the tables on one NVIDIA GPU, in one result file."""
