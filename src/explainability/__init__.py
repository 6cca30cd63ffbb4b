"""What the network listens to: class activation maps."""
