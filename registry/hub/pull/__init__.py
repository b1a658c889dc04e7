"""From the Hub to here: what is asked for, its ancestors, every byte checked, statements and scores beside it."""
