"""What bench/pipeline and bench/textbook share. Standard library only."""
