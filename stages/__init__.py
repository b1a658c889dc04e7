"""The curriculum: rationales, masking, rewards and one trainer per stage."""
