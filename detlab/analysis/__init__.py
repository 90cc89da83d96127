"""What is said about finished runs: what they get wrong, whether they can be told apart, a report of a sweep."""
