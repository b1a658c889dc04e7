"""From here to the Hub: what a push would change, the card, and one commit per adapter."""
