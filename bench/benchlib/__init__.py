"""What bench/pipeline, bench/cpu and bench/textbook share. Standard library only."""
