"""How the clips of a round come by labels: people, simulated people, and the model itself."""
