"""What decisions by costs cost beside other rules, and how often target risks by answered label are met."""
