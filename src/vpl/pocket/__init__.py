"""The embedded CLIP: its weights and card, and how it was pre-trained; a second product in its own room."""
