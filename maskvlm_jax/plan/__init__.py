"""What a run costs before it is begun: FLOPs, memory and time, on devices that one does not own."""
