"""The lab's training: teacher, losses and the one training loop (torch)."""
