"""Scoring variants side by side: answers, protocols, engines, intervals and one table."""
