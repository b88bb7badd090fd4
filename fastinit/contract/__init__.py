"""The number contract: from a fill to the record that a kernel reads."""
