"""Which problems a policy persistently fails, drawn within a budget and kept on file."""
