"""The Hugging Face Hub as one more place where objects lie: bounded requests, references, what a repository holds."""
