"""Cards, and checkpoints that lie in the repository; the wheel has the cards, and the checkpoint of the demo."""
